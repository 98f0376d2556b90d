"""The options of `seap bench`."""

from dataclasses import dataclass
from typing import Literal

from seap.errors import UserError, at_least
from seap.shares import Share


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, and how often."""

    random_weights: str | None = None
    """A public shape (llama-2-7b, llama-3.2-1b) or FAMILY:SIZE (llama:0.5b), with random weights, not models."""
    sparsity: Share = 0.5
    """Of the random model's pruned copy."""
    vocabulary: int | None = None
    """Tokens that it keeps, for the speed of an output layer that is cut; all by default."""
    round_to: int = 1
    """Its MLP widths are multiples of so many channels."""
    mode: tuple[Literal["eager", "prepacked", "auto", "compile", "graphs"], ...] = ("eager",)
    """prepacked: on a CPU, weights laid out for oneDNN. auto: those alone that are faster so for the batch. compile: by
    torch.compile, decoding with a static cache, and CUDA graphs on a GPU. graphs: decoding by eager's kernels in a CUDA
    graph. May be repeated."""
    phase: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
    """What is timed; may be repeated."""
    batch: tuple[int, ...] = (1, 8, 32)
    """Sequences at a time; may be repeated."""
    prompt_length: int = 128
    """Tokens of each prompt."""
    new_tokens: int = 32
    """Tokens decoded after it."""
    repeats: int = 7
    """Interleaved runs of each model, after a warm-up; the median is reported, and quartiles."""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise UserError(f"--sparsity {self.sparsity}: must be at least 0 and below 1, such as 0.5 for half")
        for name in ("round_to", "prompt_length", "new_tokens", "repeats"):
            at_least(name, getattr(self, name), 2 if name == "prompt_length" else 1)
        if self.vocabulary is not None:
            at_least("vocabulary", self.vocabulary, 1)
        if not self.batch:
            raise UserError("--batch: name at least one size, such as 1")
        for batch in self.batch:
            at_least("batch", batch, 1)
