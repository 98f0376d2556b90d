"""What a pruning is given in place of text, and how its result is written. Imports no torch, so that --help is quick.

Field docstrings become the help texts of the command line.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is there already, or comes beside the tasks."""

    stats: tuple[Path, ...] = ()
    """Statistics of `seap calibrate`, in place of --task."""
    mask_file: Path | None = None
    """A mask of `seap mask`, in place of choosing one."""
    general: str | None = None
    """Text for --mix and --vocabulary, NAME or NAME=PATH."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """How the checkpoint is written."""

    save_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights on disk; by default --dtype, and with auto the checkpoint's own."""
    verify: Annotated[bool, Parameter(negative="--no-verify")] = True
    """Load and run what was written before it takes its name."""
