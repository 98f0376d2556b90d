"""What a pruning did, in numbers, and what made it."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from seap.arch import describe, embedding_params
from seap.config import Calibration, Pruning
from seap.corpus import Corpus
from seap.files import digest
from seap.mask import Masks, budgets_of


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a pruning did. Sparsities are fractions removed: of the prunable, of all, of all but embeddings."""

    model: str
    method: str
    tasks: tuple[str, ...]
    target_sparsity: float
    realised_sparsity: float
    total_sparsity: float
    non_embedding_sparsity: float
    params_before: int
    params_after: int
    layers: list[dict[str, int]]
    num_tokens: int
    seconds: float
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    masks: Masks = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON; without the masks."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "masks"}
        return values | values.pop("provenance")


@dataclass(frozen=True)
class Size:
    """Parameters of a model, tied ones once: all, and those of the embeddings."""

    params: int
    embeddings: int

    @classmethod
    def of(cls, model: Any) -> "Size":
        return cls(sum(p.numel() for p in model.parameters()), embedding_params(model))


def versions() -> dict[str, str]:
    """Of everything that decides a number."""
    names = ("seap", "transformers", "safetensors", "numpy")
    return {"python": platform.python_version(), "torch": torch.__version__} | {name: version(name) for name in names}


def machine() -> dict[str, Any]:
    """The hardware that a number was measured on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in _lines(info) if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "gpu": gpu}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def commit() -> str | None:
    """Of the checkout that this code runs from; None where it isn't in one."""
    run = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return None
    return done.stdout.strip() or None


def command_line() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def choices(options: Pruning) -> dict[str, str]:
    """What each stage does in this run, whether chosen or the method's."""
    method = options.resolved()
    return {name: getattr(method, name) for name in ("score", "allocate", "mask", "compensate", "convention")}


def provenance(
    identity: str, pruning: Pruning, calibration: Calibration, corpora: Mapping[str, Corpus]
) -> dict[str, Any]:
    """What made the result: options as they were resolved, text, versions, command."""
    text = {c.name: {"source": c.source, "tokens": c.num_tokens, "hash": c.data_hash} for c in corpora.values()}
    return {
        "options": asdict(pruning) | choices(pruning),
        "calibration": asdict(calibration),
        "corpora": text,
        "fingerprint": identity,
        "key": digest([identity, asdict(pruning), asdict(calibration), [c.data_hash for c in corpora.values()]]),
        "versions": versions(),
        "command": command_line(),
    }


def widths(model: Any, masks: Masks) -> list[dict[str, int]]:
    """Units kept in each layer: `[{"kv_groups": 4, "channels": 352}, …]`."""
    budgets = budgets_of(masks)
    layers: list[dict[str, int]] = [{} for _ in describe(model).layers]
    for axis in describe(model).axes:
        layers[axis.layer][axis.name] = budgets[axis.key]
    return layers
