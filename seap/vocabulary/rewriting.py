"""The ids that stay → a tokenizer that reads and writes any text with them, numbered from 0 in their old order."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.disk.whole import temporary
from seap.errors import UserError, first_line
from seap.models.kinds import TOKENIZER_PATTERNS, TOKENIZERS
from seap.vocabulary.closure import kept_merges
from seap.vocabulary.described import Described

FILE = "tokenizer.json"
STALE = (*(name for name in TOKENIZERS if name != FILE), "merges.txt")
SAMPLES = (
    "The year 2026 isn't over: it's 12,345.678 days! I'LL say so, they'VE said so; we're done…",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # why?\n\n\n\tif x != 0 and\ty:\r\n        pass\n",
    "  leading,   inner    and trailing spaces   \n \n  \t \nCamelCaseWords XMLHttpRequest snake_case",
    "Zażółć gęślą jaźń — Привет, мир! 你好，世界。こんにちは 안녕하세요 مرحبا नमस्ते 🙂🙃👩‍👩‍👧 ½ ² Ⅷ ٣٤ ǅ",
)


# what a tokenizer in memory may say otherwise than its files
IN_MEMORY = (
    "name_or_path",
    "padding_side",
    "truncation_side",
    "verbose",
    "_processor_class",
    "_auto_map",
    "_auto_class",
)


class Source:
    """The files of a tokenizer, read once, of which smaller ones are made."""

    def __init__(self, tokenizer: Any, described: Described) -> None:
        self.tokenizer, self.described = tokenizer, described
        self.files: dict[str, bytes] = {}
        with temporary("vocabulary") as folder:
            tokenizer.save_pretrained(folder)
            for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE):
                self.files[str(path.relative_to(folder))] = path.read_bytes()

    def smaller(self, kept: Sequence[int]) -> Any:
        """A tokenizer of the same class, as it is loaded again, whose token i is the i-th of `kept` (ascending).

        Behind them stay those that have no row in the embedding: classes add some by themselves.
        """
        new = {old: i for i, old in enumerate([*kept, *self.described.beyond])}
        with temporary("vocabulary") as folder:
            for name, content in self.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            told = json.dumps(rewritten(self.described, new), ensure_ascii=False)
            (folder / FILE).write_text(told, encoding="utf-8")
            renumber(folder, new)
            drop_stale(folder)
            try:
                made = type(self.tokenizer).from_pretrained(folder, local_files_only=True)
            except Exception as error:  # whatever a class makes of files that it didn't expect
                raise UserError(
                    f"--vocabulary: a {type(self.tokenizer).__name__} can't be made with fewer tokens "
                    f"({type(error).__name__}: {first_line(error)}); leave --vocabulary out"
                ) from error
        if set(made.get_vocab().values()) != set(new.values()):
            raise UserError(
                f"--vocabulary: a {type(self.tokenizer).__name__} adds tokens of its own when it is loaded, so that "
                "the ids don't fit; leave --vocabulary out"
            )
        for name in IN_MEMORY:
            if name in self.tokenizer.__dict__:
                made.__dict__[name] = self.tokenizer.__dict__[name]
        if "name_or_path" in made.init_kwargs:
            made.init_kwargs["name_or_path"] = self.tokenizer.name_or_path
        return made


def rewritten(described: Described, new: Mapping[int, int]) -> dict[str, Any]:
    """tokenizer.json with the tokens of `new` (old id → new id) alone."""
    told = dict(described.told)
    told["added_tokens"] = [
        token | {"id": new[token["id"]]} for token in told.get("added_tokens") or [] if token["id"] in new
    ]
    told["post_processor"] = processor_with(told.get("post_processor"), new)
    if (padding := told.get("padding")) is not None:
        told["padding"] = padding | {"pad_id": new[padding["pad_id"]]}
    model, vocab = dict(described.model), described.model["vocab"]
    if described.is_bpe:
        model["vocab"] = {token: new[i] for token, i in vocab.items() if i in new}
        model["merges"] = [list(pair) for pair in kept_merges(described.merges, model["vocab"])]
    else:
        model["vocab"] = [piece for i, piece in enumerate(vocab) if i in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    told["model"] = model
    return told


def processor_with(step: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with the new ids."""
    if not isinstance(step, Mapping):
        return step
    told = dict(step)
    if told.get("special_tokens"):
        told["special_tokens"] = {
            name: token | {"ids": [new[i] for i in token["ids"]]} for name, token in told["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if name in told:
            told[name] = [told[name][0], new[told[name][1]]]
    if "processors" in told:
        told["processors"] = [processor_with(part, new) for part in told["processors"]]
    return told


def renumber(folder: Path, new: Mapping[int, int]) -> None:
    """The ids that other files of a tokenizer say; of tokens that went, nothing is said any more."""
    config = folder / "tokenizer_config.json"
    if config.is_file():
        told = json.loads(config.read_text(encoding="utf-8"))
        if isinstance(told.get("added_tokens_decoder"), dict):
            added = {int(i): token for i, token in told["added_tokens_decoder"].items()}
            told["added_tokens_decoder"] = {str(new[i]): token for i, token in added.items() if i in new}
        for name in [name for name, value in told.items() if name.endswith("_token_id") and type(value) is int]:
            told[name] = new.get(told[name])
        config.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    added_file = folder / "added_tokens.json"
    if added_file.is_file():
        told = json.loads(added_file.read_text(encoding="utf-8"))
        added_file.write_text(json.dumps({token: new[i] for token, i in told.items() if i in new}), encoding="utf-8")


def drop_stale(folder: Path) -> None:
    """Remove what other tokenizer classes would read in place of tokenizer.json."""
    for path in [folder / name for name in STALE] + [p for one in TOKENIZER_PATTERNS for p in folder.glob(one)]:
        path.unlink(missing_ok=True)


def become_(tokenizer: Any, other: Any) -> dict[str, Any]:
    """Make a tokenizer what another one of its class is; returns what it was, for `restore_`."""
    before = dict(tokenizer.__dict__)
    restore_(tokenizer, other.__dict__)
    return before


def restore_(tokenizer: Any, state: Mapping[str, Any]) -> None:
    state = dict(state)
    tokenizer.__dict__.clear()
    tokenizer.__dict__.update(state)


def check_reads_alike(tokenizer: Any, smaller: Any, kept: Sequence[int], texts: Sequence[str] = ()) -> None:
    """Raise UserError unless the smaller tokenizer reads texts whose tokens stay as before, and writes all texts back.

    It is what makes sure of tokenizers that nobody has looked at.
    """
    there = set(kept)
    for text in (*SAMPLES, *texts):
        old, found = (one(text, verbose=False)["input_ids"] for one in (tokenizer, smaller))
        alike = not there.issuperset(old) or [kept[i] for i in found] == old
        written = smaller.decode(found) == tokenizer.decode(old)
        if not alike or not written:
            what = "read otherwise though its tokens stay" if not alike else "not written back as before"
            raise UserError(
                f"--vocabulary: a {type(tokenizer).__name__} like this one can't be cut: {text!r:.60} would be {what}. "
                "Leave --vocabulary out, and please report it with the model's tokenizer.json"
            )
