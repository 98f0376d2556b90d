"""How a checkpoint's weights are quantized, by its config alone: taken back to floats as they are read, or refused.

Quantized weights can't be cut or refitted. Those of FP8, MXFP4 and compressed-tensors are plain arithmetic, which
`dequantize.py` does. The others need the package that made them, so what is asked for is the model that they were made
from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seap.errors import UserError

GIVE = "give the unquantized model: prune first, quantize last"
ENTRIES = ("quantization_config", "quantization", "compression_config")
FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
BY_BITSANDBYTES = (
    "on a machine where bitsandbytes loads it, model.dequantize().save_pretrained(DIR) makes one that can be read; or "
    + GIVE
)
BY_TORCHAO = "torchao"
FP8 = ("fp8", "mxfp8")
MXFP4 = "mxfp4"
COMPRESSED = "compressed-tensors"
DENSE_FORMATS = (  # of compressed-tensors, that hold every number
    "dense",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)
NAMES = {
    "gptq": "gptq",
    "awq": "awq",
    "auto-round": "auto-round",
    "autoround": "auto-round",
    "bitsandbytes": "bitsandbytes",
    "hqq": "hqq",
    "quanto": "quanto",
    "fbgemm_fp8": "FP8 of fbgemm",
    "modelopt": "NVIDIA's ModelOpt",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a config says of its weights. said: in words, such as `compressed-tensors, pack-quantized, 4 bits`."""

    method: str
    said: str
    bits: int
    entry: Mapping[str, Any]

    @property
    def is_read(self) -> bool:
        """Whether the weights are taken back to floats; torchao's are loaded as they are."""
        return self.method in (*FP8, MXFP4, COMPRESSED)

    @property
    def growth(self) -> float:
        """Bytes in 16 bits for one byte in the files, at most."""
        return 16 / self.bits

    def line(self) -> str:
        """What is said to whoever loads it."""
        return (
            f"its weights are quantized ({self.said}) and are taken back to floats as they are read; what rounding "
            "has lost stays lost"
        )

    def about(self) -> str:
        """For provenance."""
        return self.said


def recognised(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """How the weights of a folder are quantized; None where nothing says so.

    Raises UserError, in words that `can't load model …` may stand before, for what isn't read here.
    """
    entry = next(_entries(config), None)
    if entry is None:
        named = next((name for name in FILES if (folder / name).is_file()), "")
        if named:
            raise UserError(_refusal(named, GIVE))
        return None
    found = _described(entry)
    if found.method == BY_TORCHAO or (found.is_read and not (why := _not_held(found))):
        return found
    if found.is_read:
        raise UserError(_refusal(f"{found.said}{why}", GIVE))
    raise UserError(_refusal(found.said, BY_BITSANDBYTES if found.method == "bitsandbytes" else GIVE))


def _entries(config: Mapping[str, Any]) -> Iterator[Any]:
    """What a config, or one inside it, says of quantization."""
    for key in ENTRIES:
        if config.get(key):
            yield config[key]
    for inner in config.values():
        if isinstance(inner, Mapping) and "model_type" in inner:
            yield from _entries(inner)


def _described(entry: Any) -> Quantization:
    told: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    method = told.get("quant_method")
    if not isinstance(method, str):
        method = "bitsandbytes" if "load_in_4bit" in told or "load_in_8bit" in told else "unknown method"
        if {"group_size", "bits"} <= told.keys() and "quant_method" not in told:
            method = "MLX"
    if method in FP8:
        return Quantization(method=method, said=_fp8(told), bits=8, entry=told)
    if method == MXFP4:
        return Quantization(method=method, said="MXFP4", bits=4, entry=told)
    bits = _bits(told)
    formats = [str(told.get("format") or "")] if method == COMPRESSED else []
    parts = [NAMES.get(method, method), *formats, f"{bits} bits" if bits else ""]
    return Quantization(method=method, said=", ".join(part for part in parts if part), bits=bits or 16, entry=told)


def _fp8(told: Mapping[str, Any]) -> str:
    block = told.get("weight_block_size")
    if isinstance(block, list | tuple) and len(block) == 2:
        return f"FP8, blocks of {block[0]} × {block[1]}"
    return "FP8"


def _bits(told: Mapping[str, Any]) -> int:
    """The fewest bits of a weight that an entry tells of; 0 where it tells none."""
    found = [told.get(key) for key in ("bits", "w_bit", "nbits", "weight_bits")]
    found += [4 if told.get("load_in_4bit") else None, 8 if told.get("load_in_8bit") else None]
    found += [scheme["num_bits"] for scheme in weight_schemes(told)]
    return min((bits for bits in found if type(bits) is int and bits > 0), default=0)


def weight_schemes(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of an entry of compressed-tensors, what its groups say of weights."""
    groups = told.get("config_groups")
    schemes = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)] if groups else []
    return [scheme for scheme in schemes if isinstance(scheme, Mapping) and type(scheme.get("num_bits")) is int]


def _not_held(found: Quantization) -> str:
    """Why a kind that is read can't be in this case, to be added to what is said of it; empty where it can."""
    if found.method != COMPRESSED:
        return ""
    sparse = found.entry.get("sparsity_config") or {}
    pattern = sparse.get("format", "dense") if isinstance(sparse, Mapping) else "dense"
    if pattern not in ("dense", None):
        return f", whose weights are stored sparse ({pattern})"
    form = found.entry.get("format") or "dense"
    return "" if form in DENSE_FORMATS else f", a format that isn't read ({', '.join(DENSE_FORMATS)} are)"


def _refusal(said: str, instead: str) -> str:
    return f"its weights are quantized ({said}), so they can't be cut or read here; {instead}"
