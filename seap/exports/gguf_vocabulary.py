"""A tokenizer as llama.cpp reads it from a GGUF file.

Byte-level BPE: llama.cpp knows a list of pre-tokenizers by name, so the one is found that splits like the model's own,
by tokenizing with both. SentencePiece: pieces with scores, which are the ranks of the merges that make them.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seap.disk.whole import temporary
from seap.errors import UserError
from seap.exports.gguf_file import gguf_package

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_TEKKEN_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's: what it splits at, one expression after the other; whether whole words skip the merges."""

    splits: tuple[str, ...]
    ignore_merges: bool = False


# Names and expressions of llama.cpp's src/llama-vocab.cpp, those that decoders of the supported families use.
PRE_TOKENIZERS = {
    "llama-bpe": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), ignore_merges=True),
    "smaug-bpe": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",)),
    "qwen2": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",)),
    "tekken": PreTokenizer((rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_TEKKEN_REST}",), ignore_merges=True),
    "gpt-4o": PreTokenizer(
        (rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_TEKKEN_REST}",)
    ),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "gpt-2": PreTokenizer((_GPT2,)),
}
SAMPLES = (
    "The year 2026 isn't over: it's 12,345.678 days! I'LL say so, they'VE said so, we're done.",
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": x ** 2}  # why?\n\n\n\tif x != 0 and\ty:\r\n        pass\n",
    "  leading,   inner    and trailing spaces   \n \n  \t \nCamelCaseWords ABCdef XMLHttpRequest snake_case",
    "Zażółć gęślą jaźń — Привет, мир! 你好，世界。こんにちは 안녕하세요 مرحبا नमस्ते 🙂🙃👩‍👩‍👧 ½ ² Ⅷ ٣٤ ǅ",
    "https://example.org/a/b?c=d&e=%20f (a)/(b) //c\n/d $5.00 #tag @name <b>x</b> \\n ... !!! ??? —— '' \"\"",
)


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokenizer."""

    model: str  # gpt2, llama or none
    pre: str = "default"
    tokens: Sequence[str] = ()
    types: Sequence[int] = ()
    scores: Sequence[float] | None = None
    special: Any = None  # gguf.SpecialVocab: merges, special tokens, chat template
    space_first: bool | None = None
    notes: list[str] = field(default_factory=list)

    def add_to(self, writer: Any) -> None:
        writer.add_tokenizer_model(self.model)
        if self.model == "none":
            return
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.space_first is not None:
            writer.add_add_space_prefix(self.space_first)
        self.special.add_to_gguf(writer, quiet=True)


def vocabulary_of(tokenizer: Any, config: Any, choice: str = "auto") -> Vocabulary:
    """The vocabulary of a tokenizer. choice: auto, the name of a pre-tokenizer of llama.cpp's, or none to leave it out.

    Raises UserError for a tokenizer that llama.cpp has no equal of.
    """
    if choice == "none":
        return Vocabulary("none", notes=["no tokenizer in the file: it takes and gives token ids alone"])
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{type(tokenizer).__name__} has no tokenizer.json; --tokenizer none exports without it")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = described["model"]["type"]
    if kind != "BPE":
        raise UserError(f"llama.cpp has no {kind} tokenizer for this; --tokenizer none exports without it")
    pieces = described["model"].get("byte_fallback", False)
    special = _special(tokenizer, config, merges=not pieces)
    tokens, types = _tokens(tokenizer, described, config.vocab_size)
    if pieces:
        if choice != "auto":
            raise UserError(
                f"--tokenizer {choice} is for byte-level BPE, and this one is SentencePiece's; leave it out"
            )
        scores, first = _scores(described, tokens), _space_first(described)
        return Vocabulary("llama", "default", tokens, types, scores, special, first, _about_spaces(described))
    if (described.get("normalizer") or {}).get("type") not in (None, "NFC"):
        raise UserError("llama.cpp doesn't normalise text as this tokenizer does; --tokenizer none exports without it")
    pre = find_pre_tokenizer(described) if choice == "auto" else choice
    found = f"llama.cpp splits words as its pre-tokenizer {pre}, which gave the same tokens on every sample"
    taken = f"whether llama.cpp's pre-tokenizer {pre} splits words as this tokenizer was not looked at"
    return Vocabulary("gpt2", pre, tokens, types, special=special, notes=[found if choice == "auto" else taken])


def find_pre_tokenizer(described: Mapping[str, Any]) -> str:
    """The first of llama.cpp's pre-tokenizers with which the samples give the model's own tokens."""
    from tokenizers import Tokenizer

    own, texts = Tokenizer.from_str(json.dumps(described)), sample_texts(described)
    expected = [own.encode(text, add_special_tokens=False).ids for text in texts]
    for name, pre in PRE_TOKENIZERS.items():
        other = Tokenizer.from_str(json.dumps(_with_pre_tokenizer(described, pre)))
        if all(other.encode(t, add_special_tokens=False).ids == ids for t, ids in zip(texts, expected, strict=True)):
            return name
    raise UserError(
        f"none of llama.cpp's pre-tokenizers known here ({', '.join(PRE_TOKENIZERS)}) splits text as this tokenizer "
        "does; --tokenizer NAME takes another of llama.cpp's, --tokenizer none exports without one"
    )


def sample_texts(described: Mapping[str, Any], number: int = 400) -> list[str]:
    """Hard cases, and random strings of the vocabulary's own pieces: where two tokenizers differ, one shows it."""
    from tokenizers import decoders

    draw, decoder = random.Random(0), decoders.ByteLevel()
    pieces = [decoder.decode([token]) for token in described["model"]["vocab"]]
    special = {token["content"] for token in described.get("added_tokens", [])}
    pieces = [piece for piece in pieces if piece and piece not in special and "\ufffd" not in piece]
    return [*SAMPLES, *("".join(draw.choices(pieces, k=draw.randint(2, 12))) for _ in range(number if pieces else 0))]


def _with_pre_tokenizer(described: Mapping[str, Any], pre: PreTokenizer) -> dict[str, Any]:
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    steps: list[dict[str, Any]] = [split | {"pattern": {"Regex": expression}} for expression in pre.splits]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    model = described["model"] | {"ignore_merges": pre.ignore_merges}
    return {**described, "model": model, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def _special(tokenizer: Any, config: Any, *, merges: bool) -> Any:
    """Merges, special tokens and chat template, read by llama.cpp's own code from the tokenizer as it saves itself."""
    with temporary("vocabulary") as folder:
        tokenizer.save_pretrained(folder)
        ids = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ids = {name: value[0] if isinstance(value, list) else value for name, value in ids.items()}
        (Path(folder) / "config.json").write_text(json.dumps(ids))
        found = gguf_package().SpecialVocab(Path(folder), load_merges=merges, n_vocab=config.vocab_size)
    put = tokenizer("a")["input_ids"]  # what it really does, whatever its files say
    found.add_special_token["bos"] = bool(put) and put[0] == found.special_token_ids.get("bos", -1)
    found.add_special_token["eos"] = len(put) > 1 and put[-1] == found.special_token_ids.get("eos", -1)
    return found


def _tokens(tokenizer: Any, described: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of every id; ids that the tokenizer doesn't use are filled up."""
    kinds = gguf_package().TokenType
    texts = {i: text for text, i in tokenizer.get_vocab().items()}
    if max(texts) >= vocab_size:
        raise UserError(
            f"the tokenizer has {max(texts) + 1} tokens, the model {vocab_size}; they don't belong together"
        )
    added = {token["id"]: token for token in described.get("added_tokens", [])}
    unknown = described["model"].get("unk_token")
    tokens, types = [], []
    for i in range(vocab_size):
        text = texts.get(i, f"[PAD{i}]")
        tokens.append(text)
        if i not in texts:
            types.append(kinds.UNUSED)
        elif text == unknown and described["model"].get("byte_fallback"):
            types.append(kinds.UNKNOWN)
        elif i in added:
            types.append(kinds.CONTROL if added[i]["special"] else kinds.USER_DEFINED)
        elif described["model"].get("byte_fallback") and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
            types.append(kinds.BYTE)
        else:
            types.append(kinds.NORMAL)
    return tokens, types


def _scores(described: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Minus the rank of the first merge that makes a piece: the higher, the sooner llama.cpp merges to it."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(described["model"]["merges"]):
        ranks.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), rank)
    return [float(-ranks.get(token, len(ranks) + 1)) for token in tokens]


def _space_first(described: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text."""
    steps = [described.get("normalizer") or {}, described.get("pre_tokenizer") or {}]
    steps += [step for part in steps for step in part.get("normalizers", []) + part.get("pretokenizers", [])]
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _about_spaces(described: Mapping[str, Any]) -> list[str]:
    if (described.get("pre_tokenizer") or {}).get("type") != "Metaspace":
        return []
    return ["text that begins with a space gets one more in llama.cpp, as in SentencePiece, than in this tokenizer"]
