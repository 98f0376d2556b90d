"""`seap inspect MODEL --family`: a row of `families.py` proposed for a model that has none, and checked.

The model is built small, with random weights, from its config alone: no weight is read, and no code of the
checkpoint's runs unless it is trusted. `models/deriving.py` watches it run; here the row is tried: a model cut by it
must say what the same model says with zeros in place of what was cut.
"""

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from seap.compensation.compensate import kept_inputs
from seap.errors import UserError, first_line
from seap.models import configs, hub, kinds
from seap.models.arch import describe
from seap.models.deriving import Derived, derive
from seap.models.families import FAMILIES, Family
from seap.models.loader import resolve_model
from seap.models.watching import IDS
from seap.pruning.surgery import cut_

LAYERS = 3
LARGEST = 2e8  # parameters of the model that is tried
NEAR = 1e-4  # of the largest logit
OPEN = (
    "which on/off entries of its config change this (biases, norms of q and k, parallel blocks): tests/pruning/"
    "test_ready.py tries them once a tiny model is in tests/shared/tiny.py"
)


@dataclass(frozen=True)
class Proposal:
    """row: None where none could be told. difference: of logits, masked against sliced, relative to the largest."""

    model_type: str
    row: Family | None
    difference: float | None
    told: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the row was tried and is right as far as that goes."""
        return self.difference is not None and self.difference < NEAR

    @property
    def text(self) -> str:
        """What can be pasted into `families.py`; empty where there is no row."""
        return "" if self.row is None else as_python(self.row)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        known = FAMILIES.get(self.model_type)
        return {
            "kind": "family",
            "model_type": self.model_type,
            "row": self.text,
            "known": known is not None,
            "holds": self.holds,
            "difference": self.difference,
            "told": list(self.told),
        }


def propose(name: str, *, trust_remote_code: bool = False) -> Proposal:
    """Look at a model folder or a model on the Hub. Raises UserError for what has no config that can be read."""
    path = Path(resolve_model(name))
    if not path.is_dir():
        path = hub.fetch(name, weights=False, code=trust_remote_code)
    kinds.check_files(path)
    config = configs.any_config(path, kinds.read_json(path / "config.json"), trust_remote_code=trust_remote_code)
    told = []
    inner = config.get_text_config()
    if inner is not config:
        told.append(f"{config.model_type} wraps a text decoder, {inner.model_type}, which is what was looked at")
    return proposed(inner, told, trust_remote_code=trust_remote_code)


def proposed(config: Any, told: list[str] | None = None, *, trust_remote_code: bool = False) -> Proposal:
    """A row from a config: of a small model with random weights, tried."""
    told = list(told or [])
    model = random_model(config, trust_remote_code=trust_remote_code)
    found: Derived = derive(model)
    told += found.told
    if found.row is None:
        return Proposal(config.model_type, None, None, tuple(told))
    difference, why = tried(model, found.row)
    if why:
        told.append(f"the row was tried, and {why}")
    return Proposal(config.model_type, found.row, difference, (*told, OPEN))


def random_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """A model of a config with few layers and random weights, in float32. Raises UserError where it can't be small."""
    from transformers import AutoModelForCausalLM

    small = _with_few_layers(config)
    for shrink in (1, 4, 16, 64):
        tried_config = _narrower(small, shrink)
        with configs.reading(config.model_type, "no small model of its config can be built"):
            options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": torch.float32}
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(tried_config, **options).parameters())
            if size > LARGEST:
                continue
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(tried_config, **options).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value) * (0.3 if value.ndim == 1 else 0.1 / max(shrink, 1)))
        return model
    raise UserError(f"a {config.model_type} of {LAYERS} layers has more than {LARGEST:.0e} parameters, however narrow")


def _with_few_layers(config: Any) -> Any:
    """A copy with at most three layers and a small vocabulary, and what its config lists for each layer cut alike."""
    small, number = copy.deepcopy(config), config.num_hidden_layers
    for key, value in small.to_dict().items():
        if isinstance(value, list) and len(value) == number:
            setattr(small, key, value[:LAYERS])
    small.num_hidden_layers = min(number, LAYERS)
    small.vocab_size = min(config.vocab_size, 512)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(small, key, None)
        if isinstance(value, list) or (value is not None and value >= small.vocab_size):
            setattr(small, key, None)
    return small


def _narrower(config: Any, shrink: int) -> Any:
    """A copy whose sizes are so many times smaller; what isn't divided stays."""
    narrow = copy.deepcopy(config)
    if shrink == 1:
        return narrow
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes = {key: value for key in names if type(value := getattr(config, key, None)) is int}
    fewer = {key: max(value // shrink, 1) for key, value in sizes.items()}
    heads, groups = sizes.get(names[2], 0), fewer.get(names[3], 1)
    if heads:
        fewer[names[2]] = max(fewer[names[2]] // groups * groups, groups)
        if sizes["hidden_size"] % heads == 0:
            fewer["hidden_size"] = sizes["hidden_size"] // heads * fewer[names[2]]
    for key, value in fewer.items():
        setattr(narrow, key, value)
    return narrow


@contextlib.contextmanager
def _as_known(row: Family) -> Iterator[None]:
    """A row in the table for a while."""
    before = FAMILIES.get(row.model_type)
    FAMILIES[row.model_type] = row
    try:
        yield
    finally:
        if before is None:
            del FAMILIES[row.model_type]
        else:
            FAMILIES[row.model_type] = before


@torch.no_grad()
def tried(model: Any, row: Family) -> tuple[float | None, str]:
    """How far masked and sliced are apart, relative to the largest logit, and why the row is wrong, if it is."""
    ids = IDS % model.config.vocab_size
    with _as_known(row):
        try:
            masked, sliced = copy.deepcopy(model), copy.deepcopy(model)
            arch, draw, masks = describe(masked), torch.Generator().manual_seed(0), {}
            for axis in arch.axes:
                keep = torch.rand(axis.entries, generator=draw) < 0.5
                keep[0] = True
                masks[axis.key] = keep
                columns = ~kept_inputs(axis, keep)
                arch.weight(axis.layer, axis.consumer)[:, columns] = 0
            cut_(sliced, masks)
            expected, found = masked(ids).logits, sliced(ids).logits
        except (UserError, AssertionError) as error:
            return None, f"a model can't be cut by it: {first_line(error)}"
        except Exception as error:  # of a row that is wrong anything can be raised
            return None, f"a model can't be cut by it ({type(error).__name__}: {first_line(error)})"
    difference = float((expected - found).abs().max() / expected.abs().max())
    wrong = f"masked and sliced differ by {difference:.1g} of the largest logit, where {NEAR:.0e} is rounding"
    return difference, wrong if not difference < NEAR else ""


def as_python(row: Family) -> str:
    """A row as text: what differs from Llama's."""
    usual = FAMILIES["llama"]
    changed = {f.name: getattr(row, f.name) for f in fields(row) if getattr(row, f.name) != getattr(usual, f.name)}
    changed = {"model_type": row.model_type} | changed
    parts = [f"{name}={_literal(value)}" for name, value in changed.items()]
    line = f"replace(LLAMA, {', '.join(parts)})"
    return line if len(line) <= 112 else "replace(\n    LLAMA,\n" + "".join(f"    {part},\n" for part in parts) + ")"


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({''.join(f'{json.dumps(part)}, ' for part in value).rstrip(' ')})"
    return str(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
