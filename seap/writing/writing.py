"""Calibration text that the user lacks: the dense model writes it, like a few examples or about something.

What a model knows of a kind of text shows in what it writes of it, so that its own text can tell which units it uses
there (LLM-QAT, arXiv 2305.17888, quantises a model on text of its own in the same way).
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from math import exp, inf, log
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
from seap.text.sources import sources_of
from seap.text.tasks import load_examples
from seap.writing.author import Author, drafts, losses_of, prompt_about, prompts_like
from seap.writing.options import Writing
from seap.writing.sieve import ABSOLUTE, REASONS, Candidate, Limits, Shelf, Sieve, band, fault, limits_of

POOL = 64  # texts whose own perplexities make the band where there are no examples
MOST_PIECES = 256  # of the examples, to learn the limits from


@dataclass(frozen=True, kw_only=True)
class Written:
    """The texts that passed, in the order written, and what became of the others."""

    texts: tuple[Candidate, ...]
    tried: int
    rejected: dict[str, int]
    limits: Limits

    @property
    def num_tokens(self) -> int:
        return sum(len(text.ids) for text in self.texts)


def write(
    model: Any,
    tokenizer: Any,
    options: Writing,
    *,
    examples: Sequence[str] = (),
    about: str | None = None,
    progress: bool = True,
) -> Written:
    """Have the model write `options.num` texts, like the examples or about something, and drop those that aren't fit.

    The same seed gives the same texts with the same model, dtype, options (batch size too), kind of device, and
    versions of torch and transformers. Raises UserError when too few pass in `num · attempts` tries.
    """
    examples = distinct(examples)
    if bool(examples) == bool(about):
        raise UserError("a model writes like examples or about something: give one of the two")
    author, shelf = Author(model, tokenizer, options), Shelf()
    encoded = [author.encode(text) for text in examples]
    for ids in encoded:
        shelf.add_(ids)
    prompts = prompts_like(author, encoded) if examples else prompt_about(author, about or "")
    stream = drafts(author, prompts)
    if examples:
        limits = limits_of(pieces(author, encoded), min_tokens=options.min_tokens, widen=log(options.slack))
    else:
        pool = list(islice(stream, POOL))
        limits, stream = limits_without_examples(pool, options.min_tokens), chain(pool, stream)
    return sifted(stream, Sieve(limits, shelf), options, progress=progress)


def distinct(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def sifted(stream: Iterator[Candidate], sieve: Sieve, options: Writing, *, progress: bool) -> Written:
    """The first `options.num` texts of the stream that pass. Raises UserError when it ends before."""
    kept: list[Candidate] = []
    rejected = Counter(dict.fromkeys(REASONS, 0))
    tried = 0
    with tqdm(total=options.num, desc="write", unit="text", disable=not progress, leave=False) as bar:
        while len(kept) < options.num and (candidate := next(stream, None)) is not None:
            tried += 1
            reason = sieve.judge_(candidate)
            if reason is None:
                kept.append(candidate)
                bar.update()
            else:
                rejected[reason] += 1
    if len(kept) < options.num:
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common() if count)
        raise UserError(
            f"only {len(kept)} of {options.num} texts were fit after {tried} tries ({reasons}); ask for fewer with "
            "--num, raise --attempts, give more examples, or change --temperature, --slack or --min-tokens"
        )
    return Written(texts=tuple(kept), tried=tried, rejected=dict(rejected), limits=sieve.limits)


def limits_without_examples(pool: Sequence[Candidate], min_tokens: int) -> Limits:
    """Fixed limits, and the band of the texts' own perplexities without its tails."""
    wide = replace(ABSOLUTE, min_tokens=min_tokens)
    losses = [candidate.loss for candidate in pool if fault(candidate, wide) is None]
    lowest, highest = band(losses) if losses else (-inf, inf)
    return replace(wide, lowest=lowest, highest=highest)


def pieces(author: Author, encoded: Sequence[Sequence[int]]) -> list[Candidate]:
    """The examples, cut to the length of written texts without shorter rests, to learn what such text is like."""
    size = author.longest
    cuts = [ids[i : i + size] for ids in encoded for i in range(0, len(ids), size) if not i or i + size <= len(ids)]
    cuts = [cut for cut in cuts if len(cut) > 1]
    if not cuts:
        raise UserError("the examples have one token each, from which nothing can be learned; give longer ones")
    if len(cuts) > MOST_PIECES:
        cuts = random.Random(author.options.seed).sample(cuts, MOST_PIECES)
    return [
        Candidate(text=author.decode(cut), ids=tuple(cut), loss=loss)
        for cut, loss in zip(cuts, losses_of(author, cuts), strict=True)
    ]


def write_to_file(
    name: str,
    out: Path,
    options: Writing,
    *,
    like: str | None = None,
    about: str | None = None,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """`seap corpus write`: texts as JSONL with the column `text`, and beside it OUT.meta.json, which is returned.

    What can be refused is refused before the model is loaded.
    """
    if (like is None) == (about is None) or (about is not None and not about.strip()):
        raise UserError('say what to write: either --like FILE with examples, or --about "a description"')
    check_suffix(out, ".jsonl")
    examples, source = load_examples(like) if like is not None else ([], None)
    reads = sources_of(name) | ({"--like": Path(source)} if source is not None else {})
    kind, beside = "written texts", overwrite or not out.exists()
    texts = claimed(out, kind, overwrite=overwrite, inputs=reads)
    with texts, claimed(about_of(out), kind, overwrite=beside, inputs=reads):
        given = distinct([item.text for item in examples])
        return _write_claimed(name, out, options, given, about, source, loading or {}, progress=progress)


def _write_claimed(
    name: str,
    out: Path,
    options: Writing,
    given: Sequence[str],
    about: str | None,
    source: str | None,
    loading: Mapping[str, Any],
    *,
    progress: bool,
) -> dict[str, Any]:
    """`write_to_file`, once its output is known to be fit."""
    model, tokenizer = loader.load_for_work(name, **loading)
    written = write(model, tokenizer, options, examples=given, about=about, progress=progress)
    told = about_written(model, options, written) | {
        "about": about,
        "examples": {"source": source, "num": len(given), "data_hash": digest(given)} if given else None,
    }
    rows = [
        {"text": text.text, "num_tokens": len(text.ids), "perplexity": round(exp(text.loss), 4)}
        for text in written.texts
    ]
    return write_lines(out, "written texts", rows, told)


def about_written(model: Any, options: Writing, written: Written) -> dict[str, Any]:
    """Where written texts come from, for their metadata."""
    limits = asdict(written.limits)
    own = identity(model)
    return {
        "kind": "written texts",
        "model": own["model"],
        "fingerprint": own["fingerprint"],
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": next(model.parameters()).device.type,
        "pruned": getattr(model.config, "seap", None) is not None,
        "num_texts": len(written.texts),
        "num_tokens": written.num_tokens,
        "tried": written.tried,
        "rejected": written.rejected,
        "limits": {name: limits[name] for name in ("min_tokens", "repeated", "compression")}
        | {"lowest_perplexity": exp(limits["lowest"]), "highest_perplexity": exp(min(limits["highest"], 700))},
        "options": asdict(options),
        "seed": options.seed,
        "data_hash": digest([text.text for text in written.texts]),
        "versions": versions(),
        "commit": commit(),
        **made_by(),
    }
