"""Images of rows: where they are, how they are opened, and at which place of a conversation each stands.

Only files and bytes of the data itself are read; nothing is fetched. What is amiss with an image is said when it is
wanted, since data with images may be read for its text alone.
"""

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seap.disk.place import at_home
from seap.errors import UserError, first_line

TYPES = ("image", "image_url", "input_image")
SOURCES = ("bytes", "base64", "image", "path", "file", "url", "image_url")  # of a part, or of a column's object
PLACE = "<image>"  # in the text of data whose images have a column of their own, as LLaVA's
MOST_PIXELS = 1 << 27


@dataclass(frozen=True)
class Picture:
    """content or path, or neither where a column gives it. fault: why it can't be read. where: the row of it."""

    content: bytes | None = None
    path: str = ""
    fault: str = ""
    where: str = ""
    folder: Path | None = None

    @property
    def is_place(self) -> bool:
        """Whether it only says where an image of a column goes."""
        return self.content is None and not self.path and not self.fault

    def at(self, where: str, folder: Path | None) -> "Picture":
        return replace(self, where=where, folder=folder)

    def opened(self) -> Any:
        """A PIL image in RGB. Raises UserError, naming the row, for what is no image."""
        from PIL import Image

        told = f"{self.where}: image {self.path or 'in its bytes'}"
        if self.fault:
            raise UserError(f"{self.where}: {self.fault}")
        path = at_home(self.path)
        path = path if path.is_absolute() or self.folder is None else self.folder / path
        if self.content is None and not path.is_file():
            raise UserError(f"{told}: no such file ({path}); paths count from the folder of the data file")
        try:
            with Image.open(path if self.content is None else io.BytesIO(self.content)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise UserError(f"{told}: {image.width} × {image.height} pixels; at most {MOST_PIXELS:,} are read")
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{told}: not a readable image: {first_line(error)}; mend it, or leave the row out"
            ) from error


def picture_of(given: Any) -> Picture:
    """What a column or a part of a message says of one image."""
    if isinstance(given, Mapping):
        found = next((given[name] for name in SOURCES if given.get(name) is not None), None)
        return Picture() if found is None else _from_base64(found) if "base64" in given else picture_of(found)
    if isinstance(given, bytes):
        return Picture(content=given)
    if isinstance(given, str) and given.strip():
        return _from_text(given.strip())
    if hasattr(given, "save") and hasattr(given, "size"):  # PIL's, as datasets has them
        into = io.BytesIO()
        given.convert("RGB").save(into, format="PNG")
        return Picture(content=into.getvalue())
    return Picture(fault=f"image {given!r:.60} is a {type(given).__name__}; allowed: a path, or bytes")


def _from_text(given: str) -> Picture:
    if re.match(r"https?:|ftp:|s3:|gs:", given, re.IGNORECASE):
        return Picture(fault=f"image {given:.80}: nothing is fetched; download it and give the path of the file")
    if data := re.match(r"data:[^,]*;base64,", given):
        return _from_base64(given[data.end() :])
    return Picture(path=given.removeprefix("file://"))


def _from_base64(given: Any) -> Picture:
    try:
        return Picture(content=base64.b64decode(given, validate=True))
    except (binascii.Error, ValueError, TypeError) as error:
        return Picture(fault=f"image: its base64 is broken: {error}")


def pictures_of(given: Any) -> tuple[Picture, ...]:
    """The images of a column, which may be one, several, or none."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return ()
    several = given if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
    return tuple(picture_of(one) for one in several if one is not None)


Part = str | Picture


def placed(said: Sequence[tuple[str, Sequence[Part]]], images: Sequence[Picture]) -> list[list[Part]]:
    """Each turn's parts, with a column's images at their places: parts without an image of their own, or `<image>`.

    said: role and parts of each turn. Where no place is named, they come before the first thing that the user says.
    Raises UserError where there are more or fewer images than places.
    """
    found = [[piece for part in parts for piece in _pieces(part, images)] for _, parts in said]
    places = sum(isinstance(part, Picture) and part.is_place for parts in found for part in parts)
    if images and not places:
        first = next((i for i, (role, _) in enumerate(said) if role == "user"), 0)
        found[first] = [*images, *found[first]]
        return found
    if places != len(images):
        where = next(p.where for p in (*images, *(p for parts in found for p in parts if isinstance(p, Picture))))
        raise UserError(
            f"{where}: {len(images)} images in its columns, and {places} places for them ({PLACE}, or parts of a "
            "message of type image without an image of their own); give one for each"
        )
    left = iter(images)
    return [[next(left) if isinstance(p, Picture) and p.is_place else p for p in parts] for parts in found]


def _pieces(part: Part, images: Sequence[Picture]) -> list[Part]:
    """A text at its places for images, without the line breaks beside them."""
    if isinstance(part, Picture) or not images or PLACE not in part:
        return [part]
    found: list[Part] = []
    for number, text in enumerate(part.split(PLACE)):
        found += [Picture(where=images[0].where)] if number else []
        text = text.removeprefix("\n") if number else text
        found += [text] if text.strip() else []
    return found
