"""What the pages tell a reader to type, in their order, and a folder with all that the pages speak of."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT
from tiny import model
from toy import TEXTS, folder
from transformers import CONFIG_MAPPING
from vocabularies import byte_level

from seap.exports.gguf_vocabulary import PRE_TOKENIZERS

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*[a-z][\w.-]*(?: |$)")
SUBJECTS = ["my invoice", "the parcel", "a refund", "this order", "our account", "the printer"]
TROUBLES = ["is wrong", "is late", "never came", "was sent twice", "has 12 errors", "can't be opened", "is lost"]


@dataclass(frozen=True)
class Piece:
    """A command or a snippet of a page."""

    kind: str  # command, or the language of the block
    text: str
    fails: bool = False  # as the page shows


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pieces(page: Path) -> list[Piece]:
    """What stands in the blocks of a page. A block with `$ ` is a transcript: what is typed, and what is answered."""
    found: list[Piece] = []
    for language, block in BLOCK.findall(page.read_text()):
        if language:
            found.append(Piece(language, block))
            continue
        lines = block.replace("\\\n", " ").splitlines()
        if typed := [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]:
            lines = typed
        fails = bool(typed) and "\nerror: " in block
        lines = [re.sub(r"\s{2,}#.*$", "", line).strip() for line in lines if COMMAND.match(line)]
        found += [Piece("command", " ".join(line.split()), fails) for line in lines]
    return found


def commands(page: Path) -> list[str]:
    """Those that are seap's, without where their output goes."""
    found = [piece.text.split(" > ")[0] for piece in pieces(page) if piece.kind == "command"]
    return [text for text in found if text.startswith("seap ")]


def snippets(page: Path, language: str) -> list[str]:
    return [piece.text for piece in pieces(page) if piece.kind == language]


def tickets() -> list[str]:
    """Texts of one kind, each another."""
    found = [f"{subject} {trouble}" for subject in SUBJECTS for trouble in TROUBLES]
    return [f"Help: {first}, and {second}. Thanks!" for first in found for second in (found[0], found[9])]


def questions() -> list[str]:
    """Texts of another kind."""
    return [f"Question: {a} + {b} =? Answer: {a + b}" for a in range(3, 15) for b in (7, 18, 26, 41, 55, 63)]


def write_rows(path: str, texts: list[str]) -> None:
    Path(path).write_text("\n".join(json.dumps({"text": text}) for text in texts))


def save(path: str, name: str, **sizes: int) -> None:
    """A small model whose tokenizer every engine knows."""
    words = byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    model(name, vocab_size=len(words), max_position_embeddings=256, **sizes).save_pretrained(path)
    words.save_pretrained(path)


def furnish(*, intermediate_size: int = 120) -> None:
    """What the pages' readers have: a model, and texts of two tasks."""
    sizes = {"hidden_size": 32, "head_dim": 4, "num_hidden_layers": 2}
    save("my-model", "llama", intermediate_size=intermediate_size, **sizes)
    write_rows("tickets.jsonl", tickets())
    write_rows("gsm8k.jsonl", questions())
    for part in range(2):
        write_rows(f"part{part}.jsonl", tickets()[part::2])


def furnish_a_writer() -> None:
    """A model whose tokens are words: what a random one of bytes writes is garbled."""
    folder(Path("my-words"))
    write_rows("words.jsonl", TEXTS)


def furnish_for_engines() -> None:
    """Wide enough for channels by 256, and a mixture of experts."""
    furnish(intermediate_size=512)
    save("my-moe", "qwen3_moe")


def furnish_with_a_stranger() -> None:
    """The config of a family that seap has no row for."""
    CONFIG_MAPPING["gptj"](n_embd=32, n_layer=3, n_head=4, n_inner=40, rotary_dim=4).save_pretrained("strange-model")
