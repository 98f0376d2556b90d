"""A tokenizer of one word per token, model folders to prune, and a model that is a table, for tests of whole runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tiny import SMALL, model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(3, SMALL["vocab_size"])]
TEXTS = [" ".join(WORDS[(i * 7 + j * (i + 3)) % len(WORDS)] for j in range(4 + i % 9)) for i in range(40)]


def tokenizer() -> Any:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {word: 3 + i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def folder(path: Path, name: str = "llama", **changes: Any) -> Path:
    """A saved tiny model with its tokenizer."""
    model(name, **changes).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def texts_file(path: Path, texts: list[str] | None = None) -> Path:
    path.write_text("\n\n".join(texts or TEXTS))
    return path


class ByHand(torch.nn.Module):
    """A "model" whose next-token probabilities are a table: table[i] follows token i."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(table).log())
        self.config = SimpleNamespace(vocab_size=len(table), max_position_embeddings=64)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits[input_ids])
