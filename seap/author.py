"""Calibration text that the user lacks: the dense model writes it, like a few examples or about something.

What a model knows of a kind of text shows in what it writes of it, so that its own text can tell which units it uses
there (LLM-QAT, arXiv 2305.17888, quantises a model on text of its own in the same way).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from math import exp, inf, log, nan
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from seap import checkpoint
from seap.calibration import identity
from seap.config_writing import Writing
from seap.environment import command_line, commit, versions
from seap.errors import UserError
from seap.files import check_output_file, digest, write_lines
from seap.metrics import Row, log_likelihoods
from seap.sieve import ABSOLUTE, REASONS, Candidate, Limits, Shelf, Sieve, band, fault, limits_of
from seap.tasks import load_examples

POOL = 64  # texts whose own perplexities make the band where there are no examples
MOST_PIECES = 256  # of the examples, to learn the limits from
ABOUT_CHAT = "Write one text of this kind: {}\nReply with the text alone, nothing before or after it."
ABOUT_PLAIN = "Below is a text of this kind: {}\n\n"


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and the tokens after it with which the text begins."""

    ids: Sequence[int]
    start: Sequence[int] = ()


Prompts = Callable[[random.Random], Prompt]


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


@dataclass(frozen=True)
class Author:
    """A model with its tokenizer, and how it is to write."""

    model: Any
    tokenizer: Any
    options: Writing

    @property
    def longest(self) -> int:
        """Tokens that a text may have: --max-new-tokens, or half of what the model can read."""
        return int(min(self.options.max_new_tokens, self._positions // 2))

    @property
    def room(self) -> int:
        """Tokens that a prompt made of examples may have."""
        return int(min(self.options.context_tokens, self._positions - self.longest))

    @property
    def mark(self) -> list[int]:
        """The token that the tokenizer puts before a text by itself, if it does."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a", verbose=False)["input_ids"][:1] == [bos] else []

    @property
    def between(self) -> list[int]:
        """What stands between two texts. Raises UserError for a tokenizer that has no token for it."""
        if self.options.separator is not None:
            return self.encode(self.options.separator)
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token; give --separator, such as '\\n###\\n'")
        eos = [self.tokenizer.eos_token_id]
        return eos if self.mark == eos else eos + self.mark

    @property
    def ends(self) -> list[int]:
        """The tokens after which the model has said all."""
        own = self.model.generation_config.eos_token_id
        found = [*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id]
        return sorted({token for token in found if token is not None})

    @property
    def _positions(self) -> float:
        return getattr(self.model.config, "max_position_embeddings", None) or inf

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


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


def prompts_like(author: Author, encoded: Sequence[Sequence[int]]) -> Prompts:
    """Prompts of examples drawn anew each time: whole ones and the start of another, or a stretch of a long one.

    A first example is drawn; where it fits, others that fit come after it, so that long and short ones get their share.
    """
    begin = author.mark or ([] if author.options.separator else author.between)
    room = author.room - len(begin) - author.options.start_tokens

    def draw(generator: random.Random) -> Prompt:
        first, *others = generator.sample(encoded, len(encoded))
        if len(first) + len(author.between) > room:
            length = min(room, author.longest)
            place = generator.randrange(len(first) - length + 1)
            return Prompt([*author.mark, *first[place : place + length]])
        start = generator.choice(others or [first])
        start = start[: generator.randint(min(1, author.options.start_tokens), author.options.start_tokens)]
        shown = [*first, *author.between]
        for ids in others[: author.options.shots - 1]:
            if len(shown) + len(ids) + len(author.between) <= room:
                shown += [*ids, *author.between]
        return Prompt([*begin, *shown], start)

    return draw


def prompt_about(author: Author, about: str) -> Prompts:
    """One prompt: in the tokenizer's chat template if it has one, else a line that leads to such a text."""
    if author.tokenizer.chat_template:
        asked = [{"role": "user", "content": ABOUT_CHAT.format(about.strip())}]
        text = author.tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        ids = author.encode(text)
    else:
        ids = author.mark + author.encode(ABOUT_PLAIN.format(about.strip()))
    if len(ids) > author.room:
        raise UserError(f"--about has {len(ids)} tokens, room is for {author.room}; say it in fewer words")
    return lambda generator: Prompt(ids)


def drafts(author: Author, prompts: Prompts) -> Iterator[Candidate]:
    """What the model writes, batch after batch, each seeded by itself; at most `num · attempts` texts."""
    options = author.options
    for start in range(0, most := options.num * options.attempts, options.batch_size):
        places = range(start, min(start + options.batch_size, most))
        drawn = [prompts(random.Random(f"{options.seed} {place}")) for place in places]
        texts = sampled(author, drawn, seed=int(digest([options.seed, start]), 16) >> 1)
        encoded = [author.encode(text) for text in texts]
        for text, ids, loss in zip(texts, encoded, losses_of(author, encoded), strict=True):
            yield Candidate(text=text, ids=tuple(ids), loss=loss)


@torch.no_grad()
def sampled(author: Author, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
    """One text after each prompt. The caller's own random numbers go on as if nothing had been drawn."""
    tokenizer, options = author.tokenizer, author.options
    device = next(author.model.parameters()).device
    rows = [[*prompt.ids, *prompt.start] for prompt in prompts]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (author.ends or [0])[0]
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    stop = {"stop_strings": [options.separator], "tokenizer": tokenizer} if options.separator else {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            made = author.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=author.longest,
                do_sample=True,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=0,
                repetition_penalty=1.0,
                pad_token_id=pad,
                eos_token_id=author.ends or None,
                **stop,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory doesn't hold {options.batch_size} texts at a time; lower --batch-size"
            ) from error
    new = made[:, width:].tolist()
    return [cleaned(author, [*prompt.start, *ids][: author.longest]) for prompt, ids in zip(prompts, new, strict=True)]


def cleaned(author: Author, ids: Sequence[int]) -> str:
    """A text up to its end, without half a character there and blank lines around."""
    ends = set(author.ends)
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text = author.decode(ids[:end])
    if author.options.separator:
        text = text.split(author.options.separator)[0]
    return (text.rstrip("\ufffd") if end == len(ids) else text).strip("\n").rstrip()


def losses_of(author: Author, encoded: Sequence[Sequence[int]]) -> list[float]:
    """Nats per token of each text by itself, as calibration would read it; NaN where no token is predicted."""
    mark = author.mark
    rows = [Row((*mark, *ids[: author.longest * 2 - len(mark)])) for ids in encoded]
    scored = [place for place, row in enumerate(rows) if len(row.ids) > 1]
    found = [nan] * len(rows)
    sums = log_likelihoods(author.model, [rows[place] for place in scored]) if scored else []
    for place, (total, count) in zip(scored, sums, strict=True):
        found[place] = -total / count
    return found


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
    check_output_file(out, suffix=".jsonl", overwrite=overwrite)
    examples, source = load_examples(like) if like is not None else ([], None)
    if source is not None and out.exists() and out.resolve() == Path(source).resolve():
        raise UserError(f"--out {out} is --like itself, whose examples would be lost; name another file")
    model, tokenizer = checkpoint.load_for_work(name, **(loading or {}))
    given = distinct([item.text for item in examples])
    written = write(model, tokenizer, options, examples=given, about=about, progress=progress)
    told = about_written(model, options, written) | {
        "about": about,
        "examples": {"source": source, "num": len(given), "data_hash": digest(given)} if given else None,
    }
    rows = [
        {"text": text.text, "num_tokens": len(text.ids), "perplexity": round(exp(text.loss), 4)}
        for text in written.texts
    ]
    write_lines(out, rows, told)
    return told


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
        "command": command_line(),
    }
