"""The options for models that are larger than memory."""

from dataclasses import dataclass
from pathlib import Path

from seap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a model that doesn't fit in memory is worked with."""

    stream: bool = False
    """Keep the weights in their files and work on one decoder layer at a time, for models larger than memory."""
    offload_dir: Path | None = None
    """With --stream: keep the calibration text's hidden states here, not in memory."""

    def __post_init__(self) -> None:
        if self.offload_dir is not None and not self.stream:
            raise UserError(
                f"--offload-dir {self.offload_dir} has no effect without --stream; add it, or leave both out"
            )
