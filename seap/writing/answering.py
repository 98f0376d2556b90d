"""The dense model's own answers to a task's prompts: what it really writes there, to calibrate on.

RESP (arXiv 2512.02185) calibrates reasoning models on what they generate themselves, and lets those tokens alone
count (`--weigh generated`). Answers that loop or don't come to their end are dropped, since a model that is lost says
nothing of how it answers.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seap.activations.calibration import identity
from seap.disk.claim import claimed
from seap.disk.kinds import about_of
from seap.environment import commit, made_by, versions
from seap.errors import UserError
from seap.files import check_suffix, digest, write_lines
from seap.models import loader
from seap.text.encode import in_template, prompt_ids
from seap.text.options import Reading
from seap.text.shapes import Item, without_answer
from seap.text.sources import sources_of
from seap.text.tasks import load_prompts
from seap.writing.author import Author, Prompt, continued
from seap.writing.options import Answering
from seap.writing.sieve import ABSOLUTE, compression, repeated_share

KIND = "written texts"
REASONS = ("prompt too long", "cut off", "blank", "garbled", "loop")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prompt as it was given, and what the model wrote after it. ids: with its end."""

    item: Item
    text: str
    num_tokens: int
    in_template: bool

    @property
    def row(self) -> dict[str, Any]:
        """For a file that `--task` reads: turns where the model was asked in its template."""
        if not self.in_template:
            return {"prompt": self.item.text, "answer": self.text, "generated": True}
        messages = [turn.message for turn in self.item.turns] + [{"role": "assistant", "content": self.text}]
        return {"messages": messages, **({"tools": self.item.tools} if self.item.tools else {}), "generated": True}


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers kept, in the order of their prompts, and what became of the other tries."""

    answers: tuple[Answer, ...]
    num_prompts: int
    tried: int
    rejected: dict[str, int]


def answer(
    model: Any, tokenizer: Any, prompts: Sequence[Item], options: Answering, *, progress: bool = True
) -> Answered:
    """Have the model answer each prompt until an answer is fit, `attempts` times at most.

    The same seed gives the same answers under the conditions of `writing.write`. Raises UserError where none is fit.
    """
    author = Author(model, tokenizer, options.writing())
    asked = _drawn(prompts, options)
    reading = Reading(template=options.template)
    ids = [prompt_ids(tokenizer, item, reading) for item in asked]
    kept: dict[int, Answer] = {}
    rejected, tried = Counter(dict.fromkeys(REASONS, 0)), 0
    fitting = [place for place, own in enumerate(ids) if len(own) <= author.room_to_answer]
    rejected["prompt too long"] = len(ids) - len(fitting)
    with tqdm(total=len(fitting), desc="answer", unit="prompt", disable=not progress, leave=False) as bar:
        for attempt in range(options.attempts):
            left = [place for place in fitting if place not in kept]
            for place, new in _written(author, left, ids, attempt):
                tried += 1
                text, reason = judged(author, new)
                rejected[reason] += bool(reason)
                if not reason:
                    item = asked[place]
                    chat = in_template(tokenizer, item, reading)
                    kept[place] = Answer(item=item, text=text, num_tokens=len(new), in_template=chat)
                    bar.update()
    del rejected[""]
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common() if count)
        raise UserError(
            f"none of {tried} answers to {len(asked)} prompts was fit ({told}); raise --max-new-tokens, give "
            "--separator to a model that doesn't end its answers, or lower --temperature"
        )
    return Answered(
        answers=tuple(kept[place] for place in sorted(kept)),
        num_prompts=len(asked),
        tried=tried,
        rejected=dict(rejected),
    )


def _drawn(prompts: Sequence[Item], options: Answering) -> list[Item]:
    """Each prompt once, without its answer."""
    asked = {item.text: item for item in map(without_answer, prompts)}
    distinct = list(asked.values())
    return random.Random(options.seed).sample(distinct, min(options.num or len(distinct), len(distinct)))


def _written(
    author: Author, places: Sequence[int], ids: Sequence[Sequence[int]], attempt: int
) -> Iterator[tuple[int, list[int]]]:
    """What is written after each prompt, those of like length together, each batch seeded by itself."""
    order = sorted(places, key=lambda place: len(ids[place]))
    size = author.options.batch_size
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        seed = int(digest([author.options.seed, attempt, start]), 16) >> 1
        yield from zip(batch, continued(author, [Prompt(ids[place]) for place in batch], seed=seed), strict=True)


def judged(author: Author, ids: list[int]) -> tuple[str, str]:
    """An answer's text, and what is wrong with it, one of REASONS; empty where nothing is. Cuts ids at their end."""
    ends, separator = set(author.ends), author.options.separator
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    if end is not None:
        del ids[end:]
    text = author.decode(ids)
    if separator and separator in text:
        text, end = text.split(separator)[0], len(ids)
    text = text.strip()
    if end is None:
        return text, "cut off"
    if not text:
        return text, "blank"
    if "\ufffd" in text:
        return text, "garbled"
    if repeated_share(ids) > ABSOLUTE.repeated or compression(text) > ABSOLUTE.compression:
        return text, "loop"
    return text, ""


def answer_to_file(
    name: str,
    prompts: str,
    out: Path,
    options: Answering,
    *,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """`seap corpus answer`: prompts with the model's answers as JSONL; beside it OUT.meta.json, which is returned."""
    check_suffix(out, ".jsonl")
    items, source = load_prompts(prompts)
    reads, beside = sources_of(name) | {"--prompts": Path(source)}, overwrite or not out.exists()
    texts = claimed(out, KIND, overwrite=overwrite, inputs=reads)
    with texts, claimed(about_of(out), KIND, overwrite=beside, inputs=reads):
        model, tokenizer = loader.load_for_work(name, **(loading or {}))
        found = answer(model, tokenizer, items, options, progress=progress)
        told = about_answers(model, options, found) | {"prompts": {"source": source, "num": found.num_prompts}}
        return write_lines(out, KIND, [one.row for one in found.answers], told)


def about_answers(model: Any, options: Answering, found: Answered) -> dict[str, Any]:
    """Where the answers come from, for their metadata."""
    own = identity(model)
    return {
        "kind": KIND,
        "model": own["model"],
        "fingerprint": own["fingerprint"],
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": next(model.parameters()).device.type,
        "pruned": getattr(model.config, "seap", None) is not None,
        "num_answers": len(found.answers),
        "num_tokens": sum(one.num_tokens for one in found.answers),
        "in_template": sum(one.in_template for one in found.answers),
        "tried": found.tried,
        "rejected": found.rejected,
        "options": asdict(options),
        "seed": options.seed,
        "data_hash": digest([one.row for one in found.answers]),
        "versions": versions(),
        "commit": commit(),
        **made_by(),
    }
