"""How a model is loaded, and worked with where it is larger than memory. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seap.errors import UserError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is loaded."""

    dtype: Dtype = "auto"
    """Arithmetic; auto is the checkpoint's own, but float32 on a CPU without 16-bit arithmetic if it fits in memory."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes a GPU if there is one."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint. Only for sources that you trust."""
    skip_digests: bool = False
    """Don't hold a checkpoint's weight files against the digests in its seap.json: saves reading them once."""


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a model that doesn't fit in memory is worked with."""

    stream: bool = False
    """Keep the weights in their files and work on one decoder layer at a time, for models larger than memory."""
    offload_dir: Path | None = None
    """With --stream: keep the text's hidden states and what else is made of them here, not in memory; without it, what
    is more than 1 GB of one kind lies in the temporary folder."""

    def __post_init__(self) -> None:
        if self.offload_dir is not None and not self.stream:
            raise UserError(
                f"--offload-dir {self.offload_dir} has no effect without --stream; add it, or leave both out"
            )
