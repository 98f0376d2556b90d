"""A GGUF file as a model: transformers reads and dequantizes it; what it would misread is mended or refused here.

Transformers takes a file's sizes and weights, and no more of its rope than the base frequency. A rope that is scaled
in one of the ways that a config can say is put into the config (llama.cpp stores Llama 3's as one factor per
frequency); any other is refused, since the model would go on reading, wrongly, without a word.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seap.errors import UserError, first_line, missing_extra

SUFFIX = ".gguf"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LLAMA3 = [(8.0, 8192), (32.0, 8192), (16.0, 8192), (4.0, 8192)]  # factor and original context of those released
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Header:
    """What a file says of itself. `types`: ggml type → numbers stored in it, of the matrices only."""

    fields: Mapping[str, Any]
    types: Mapping[str, int]
    num_weights: int
    rope_factors: tuple[float, ...]
    other_rope: str | None = None
    num_layers: int = 0  # that tensors belong to

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    @property
    def dtype(self) -> torch.dtype:
        """The float type of most of it; bfloat16, in which such models are made, where most is quantized."""
        most = max(self.types, key=lambda name: self.types[name], default="F32")
        return FLOATS.get(most, torch.bfloat16)

    def about(self) -> str:
        """For provenance."""
        kinds = ", ".join(sorted(self.types, key=lambda name: -self.types[name]))
        return f"GGUF {self.architecture} ({kinds})"


def is_gguf(name: str) -> bool:
    return Path(name).suffix.lower() == SUFFIX


def arguments(path: Path) -> tuple[str, dict[str, str]]:
    """The folder and the keyword arguments with which transformers reads a file."""
    return str(path.absolute().parent), {"gguf_file": path.name}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is a UserError that names the file and the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a parser of a damaged or unknown file raises what it likes
        raise UserError(
            f"can't read {path}: {first_line(error)}; transformers can't load this file, so convert it, or take the "
            "model's safetensors folder"
        ) from error


def header(path: Path) -> Header:
    """Raises UserError for what isn't a whole GGUF file, and where the packages that read one are missing."""
    for package in ("gguf", "accelerate"):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_extra(package, "gguf", f"the model {path}") from error
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    stat = path.stat()
    return _header(path.absolute(), stat.st_mtime_ns, stat.st_size)


@cache
def _header(path: Path, changed: int, size: int) -> Header:
    from gguf import GGUFReader

    with reading(path):
        file = GGUFReader(path)
        skipped = ("tokenizer.ggml.", "GGUF.")
        fields = {key: field.contents() for key, field in file.fields.items() if not key.startswith(skipped)}
        if int(fields.get("split.count", 0)) > 1:
            raise UserError(f"{path} is one of {fields['split.count']} parts; join them: llama-gguf-split --merge")
        types: Counter[str] = Counter()
        for tensor in file.tensors:
            if len(tensor.shape) > 1:
                types[tensor.tensor_type.name] += int(tensor.n_elements)
        own = [tensor for tensor in file.tensors if tensor.name not in ROPE_TENSORS]
        factors = [tensor for tensor in file.tensors if tensor.name == ROPE_TENSORS[0]]
        other = next((tensor.name for tensor in file.tensors if tensor.name in ROPE_TENSORS[1:]), None)
        values = tuple(map(float, factors[0].data)) if factors else ()
        layers = {tensor.name.split(".")[1] for tensor in own if tensor.name.startswith("blk.")}
        return Header(fields, dict(types), sum(int(tensor.n_elements) for tensor in own), values, other, len(layers))


def config_of(path: Path) -> Any:
    """The file's config, its rope mended. Raises UserError for what transformers can't read, with the cause."""
    from transformers import AutoConfig

    said = header(path)
    blocks = said.fields.get(f"{said.architecture}.block_count", said.num_layers)
    if blocks != said.num_layers:  # before anything is built by it
        raise UserError(
            f"can't read {path}: it says {blocks} layers and has weights of {said.num_layers}; get it again"
        )
    folder, given = arguments(path)
    with reading(path):
        config = AutoConfig.from_pretrained(folder, **given)
    config.rope_parameters = _rope(path, said, dict(getattr(config, "rope_parameters", None) or {}), config)
    config.dequantized_from = said.about()
    return config


def _rope(path: Path, said: Header, rope: dict[str, Any], config: Any) -> dict[str, Any]:
    prefix = f"{said.architecture}.rope.scaling."
    scaling = {key.removeprefix(prefix): value for key, value in said.fields.items() if key.startswith(prefix)}
    kind = scaling.get("type", "none")
    if said.other_rope is not None:
        raise _unread_rope(path, f"it has the tensor {said.other_rope}")
    if said.rope_factors and any(not math.isclose(factor, 1.0) for factor in said.rope_factors):
        return rope | _llama3(path, said.rope_factors, rope)
    if rope.get("rope_type", "default") != "default" or kind == "none":
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": float(scaling["factor"])}
    if kind == "yarn" and {"factor", "original_context_length"} <= scaling.keys():
        original = int(scaling["original_context_length"])
        return rope | {
            "rope_type": "yarn",
            "factor": float(scaling["factor"]),
            "original_max_position_embeddings": original,
        }
    raise _unread_rope(path, f"its type is {kind}, of {', '.join(scaling)}")


def _llama3(path: Path, factors: tuple[float, ...], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling (transformers' modeling_rope_utils) whose factors per frequency are those of the file."""
    size = 2 * len(factors)
    for factor, original in LLAMA3:
        low, high = original / 1.0, original / 4.0  # wavelengths of low_freq_factor 1 and high_freq_factor 4
        expected = []
        for i in range(len(factors)):
            wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (2 * i / size)
            smooth = (original / wavelength - 1.0) / 3.0
            between = 1 / ((1 - smooth) / factor + smooth)
            expected.append(1.0 if wavelength < high else factor if wavelength > low else between)
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, expected, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    raise _unread_rope(path, "its factors per frequency are none of Llama 3's")


def _unread_rope(path: Path, why: str) -> UserError:
    return UserError(
        f"can't read {path}: transformers takes no scaled rope from a GGUF file, and this one's ({why}) can't be told "
        "to it; take the model's safetensors folder"
    )


def load(path: Path, config: Any, dtype: str) -> tuple[Any, Any, Mapping[str, Any]]:
    """Model, tokenizer and transformers' loading info. dtype auto is the file's own (see `Header.dtype`).

    Raises UserError for weights of the file that have no place in the model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = header(path)
    folder, given = arguments(path)
    stored = said.dtype if dtype == "auto" else getattr(torch, dtype)
    with reading(path):
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, **given
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **given)
    _forget_file_(model)
    model = model.to(stored)
    model.config.dtype = stored
    model.config._name_or_path = str(path)
    loaded = sum(parameter.numel() for parameter in model.parameters())
    if loaded < said.num_weights:
        raise UserError(
            f"can't read {path}: {said.num_weights - loaded:,} of its {said.num_weights:,} weights have no place in "
            f"transformers' {type(model).__name__}; take the model's safetensors folder"
        )
    return model, tokenizer, loading


def _forget_file_(model: nn.Module) -> None:
    """What transformers remembers of a quantized file, which the model no longer is; it would refuse to be saved."""
    model.is_quantized, model.hf_quantizer = False, None  # type: ignore[assignment]
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)


def weight_bytes(path: Path, dtype: str) -> int:
    """What the weights take in memory once they are read."""
    said = header(path)
    return said.num_weights * (said.dtype if dtype == "auto" else getattr(torch, dtype)).itemsize
