"""What the weights' own headers say, and whether the config agrees, before anything is built by the config.

https://github.com/huggingface/safetensors#format: eight bytes of length, then JSON with dtype, shape and place.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seap.models.families import Family
from seap.models.kinds import cant_load, quantized_names, refuse_pointer

LONGEST = 100_000_000  # bytes of a header, as safetensors itself allows
MOST_LAYERS = 1000  # of a config without weights to check it by
BEYOND = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # layers after the last, which predict further tokens

# before the layers' own name, in older checkpoints of some families and in multimodal ones; not of other parts
ELSEWHERE = r"(?!.*(?:vision|visual|image|audio|speech|mtp|nextn))(?:[A-Za-z_]\w*\.)+"

Shapes = dict[str, tuple[int, ...]]


def read_headers(files: Iterable[Path]) -> Shapes:
    """Name → shape of every weight. Raises UserError for a damaged, truncated or absent file; reads no weight."""
    shapes: Shapes = {}
    for file in files:
        shapes |= _header(file)
    return shapes


def _header(path: Path) -> Shapes:
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LONGEST, size - 8):
            raise cant_load(path.parent, f"{path.name} is truncated or no safetensors file; get it again")
        raw = file.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        sound = type(end) is int and all(type(size) is int and size >= 0 for shape in shapes.values() for size in shape)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise cant_load(
            path.parent, f"{path.name} is no safetensors file: its header is damaged; get it again"
        ) from error
    if not sound:
        raise cant_load(path.parent, f"{path.name} is no safetensors file: its header is damaged; get it again")
    if 8 + length + end != size:
        raise cant_load(
            path.parent,
            f"{path.name} is truncated or damaged: {8 + length + end:,} bytes by its header, {size:,} on disk",
        )
    return shapes


def layer_numbers(names: Iterable[str], family: Family) -> set[int]:
    """The decoder layers that weights belong to, with or without the model's own prefix, or with another."""
    first, _, rest = family.layers.partition(".")
    given = list(names)
    for before in (rf"(?:{re.escape(first)}\.)?", ELSEWHERE):
        pattern = re.compile(rf"{before}{re.escape(rest)}\.(\d{{1,9}})\.")
        if numbers := {int(found.group(1)) for name in given if (found := pattern.match(name))}:
            return numbers
    return set()


def check_num_layers(
    folder: Path,
    given: Any,
    shapes: Shapes,
    config: Mapping[str, Any],
    family: Family,
    *,
    quantized: bool = False,
) -> None:
    """Raise UserError unless the config's number of layers is that of the weights.

    Layers of `num_nextn_predict_layers` after the last are no decoder layers: they are left out, and that is said.
    quantized: whether the config says that the weights are.
    """
    if type(given) is not int or given < 1:
        raise cant_load(folder, f"config.json says {given!r} layers; it must be a whole number above 0")
    if not shapes:
        if given > MOST_LAYERS:
            raise cant_load(
                folder, f"config.json says {given:,} layers, and there are no weights; at most {MOST_LAYERS}"
            )
        return
    if not quantized and (strange := quantized_names(shapes)):
        raise cant_load(folder, f"its weights are quantized ({strange}); give the unquantized model: quantize last")
    there = layer_numbers(shapes, family)
    if not there:
        raise cant_load(
            folder,
            f"none of its weights is of a layer ({family.layers}.0.…); the first is {min(shapes)}. "
            "Is it a checkpoint of a causal language model, saved by save_pretrained?",
        )
    extra = sum(value for key in BEYOND if type(value := config.get(key)) is int and 0 < value < len(there))
    number = max(there) + 1
    if len(there) < number:
        missing = min(set(range(number)) - there) if number < 1 << 20 else len(there)
        raise cant_load(
            folder, f"the weights have layer {max(there)}, but none of layer {missing}; get the missing file"
        )
    if given > number:
        raise cant_load(folder, f"config.json says {given:,} layers, the weights have {number}; correct the config")
    if given < number - extra:
        raise cant_load(
            folder,
            f"config.json says {given} layers, the weights have {number}, {number - given} of which would be lost; "
            "correct the config",
        )


def check_shapes(folder: Path, model: Any, shapes: Shapes) -> None:
    """Raise UserError where the config makes a weight of another shape than the stored one.

    model: built from the config without memory (on meta). Weights that have another name in the files are left to
    the loading itself.
    """
    base = f"{model.base_model_prefix}."
    for name, value in model.state_dict().items():
        if ".experts." in name:  # stored one by one by some, stacked by others
            continue
        stored = next((shapes[n] for n in (name, name.removeprefix(base), base + name) if n in shapes), None)
        if stored is not None and stored != tuple(value.shape):
            raise cant_load(folder, _misfit(name, stored, tuple(value.shape), model.config))


def _misfit(name: str, stored: tuple[int, ...], built: tuple[int, ...], config: Any) -> str:
    text = f"{name} is {_said(stored)} in the weights and {_said(built)} by config.json"
    wrong = [(a, b) for a, b in zip(stored, built, strict=False) if a != b] if len(stored) == len(built) else []
    for there, asked in wrong:
        keys = [key for key, value in config.to_dict().items() if type(value) is int and value == asked]
        if keys:
            return f"{text}: {' or '.join(keys[:3])} {asked}, where the weights have {there}; correct the config"
    return f"{text}; correct the config, or get the weights again"


def _said(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
