"""Items with images → tokens and what the model's own processor makes of the images, as the model is used with them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seap.errors import UserError, first_line
from seap.models.sight import Sight, sight_of
from seap.text.decoding import say_once
from seap.text.options import Reading
from seap.text.pictures import PLACE, Part, Picture, placed
from seap.text.shapes import Item
from seap.text.turns import Turn, pictures_in, plain

TEXT_ONLY = "the model reads text alone"


def sees(tokenizer: Any, item: Item, reading: Reading) -> Sight | None:
    """How the model sees an item's images; None where there are none to be seen.

    A column of images is left out where the model reads text alone, which is said. Raises UserError for images in
    messages there, where what is said of them would be of nothing.
    """
    if reading.images == "none" or not item.pictures:
        return None
    sight = sight_of(tokenizer)
    if sight is None and len(item.images) < len(item.pictures):
        where = pictures_in(item.turns)[0].where
        raise UserError(
            f"{where}: an image in its messages, and {TEXT_ONLY}; leave such rows out, or use --images none"
        )
    if sight is None:
        say_once(f"images are left out: {TEXT_ONLY}")
    return sight


def refuse_images(tokenizer: Any, item: Item, reading: Reading, what: str) -> None:
    """Raise UserError for an item whose images the model would see. what: that reads text alone."""
    if sees(tokenizer, item, reading) is not None:
        where = item.pictures[0].where
        raise UserError(f"{where} has images, and {what} reads text alone; use --images none, or data without images")


def shown_turns(item: Item) -> tuple[Turn, ...]:
    """The turns with every image at its place."""
    found = placed([(turn.role, turn.parts or (turn.content,)) for turn in item.turns], item.images)
    return tuple(replace(turn, parts=tuple(parts)) for turn, parts in zip(item.turns, found, strict=True))


def message(turn: Turn) -> dict[str, Any]:
    """For a processor's template, which reads lists of parts."""
    return {**turn.message, "content": [_part(part) for part in turn.parts]}


def _part(part: Part) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}


def written_out(item: Item, mark: str) -> tuple[str, tuple[tuple[int, int], ...], tuple[Picture, ...]]:
    """An item without a template: its text with a mark for each image, where answers stand, and the images."""
    turns = shown_turns(item) if item.turns else ()
    if item.is_free:
        marked = [replace(turn, content="".join(_marked(turn.parts, mark)), parts=()) for turn in turns]
        return *plain(marked), pictures_in(turns)
    start = item.answer_start
    asked = item.text if start is None else item.text[:start]
    answer = "" if start is None else item.text[start:]
    if PLACE in asked and asked.count(PLACE) == len(item.images):
        asked = asked.replace(PLACE, mark)
    else:
        asked = f"{mark}\n" * len(item.images) + asked
    text = asked + answer
    return text, ((len(asked), len(text)),) if answer else (), item.images


def _marked(parts: Sequence[Part], mark: str) -> list[str]:
    return [f"{mark}\n" if isinstance(part, Picture) else part for part in parts]


def looked_at(
    sight: Sight, text: str, pictures: Sequence[Picture], *, special: bool
) -> tuple[list[int], dict[str, Tensor]]:
    """The ids of a text and what the model reads beside them. Raises UserError for what the processor refuses."""
    mark, where = mark_of(sight), pictures[0].where
    if text.count(mark) != len(pictures):
        raise UserError(
            f"{where}: {len(pictures)} images, and the text as the model is given it has {text.count(mark)} places for "
            f"them ({mark}); the chat template may not write images, or the text itself has such a mark"
        )
    images = [picture.opened() for picture in pictures]
    try:
        found = sight.processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=special)
    except UserError:
        raise
    except Exception as error:  # processors raise what they like
        raise UserError(f"{where}: the model's processor refuses its images: {first_line(error)}") from error
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    ids = tensors.pop("input_ids")[0].tolist()
    tensors.pop("attention_mask", None)
    if sight.token not in ids:
        raise UserError(
            f"{where}: the processor wrote no token for its images (id {sight.token}); it isn't the model's"
        )
    return ids, tensors


def marks_of(
    sight: Sight, text: str, pictures: Sequence[Picture], spans: Sequence[tuple[int, int]], size: int, *, special: bool
) -> list[bool]:
    """Of each token whether it is of a span, by tokens counted from the beginning of the text to both sides of it."""

    def upto(end: int) -> int:
        before = text[:end]
        count = before.count(mark_of(sight))
        if not count:
            return len(sight.processor.tokenizer(before, add_special_tokens=special)["input_ids"])
        return len(looked_at(sight, before, pictures[:count], special=special)[0])

    found = torch.zeros(size, dtype=torch.bool)
    for start, end in spans:
        found[upto(start) : upto(end)] = True
    return found.tolist()


def mark_of(sight: Sight) -> str:
    """What stands for one image in a text that the processor is given."""
    mark = getattr(sight.processor, "image_token", None)
    if not isinstance(mark, str):
        raise UserError(f"{type(sight.processor).__name__} doesn't say how a text marks an image; use --images none")
    return mark
