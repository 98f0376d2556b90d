"""What a model folder is, seen before anything of it is used: the kind of checkpoint, and the files that are read.

A folder is a stranger's. Only its own files are read (links that lead out are refused, but for those of the Hub's
cache), only safetensors for weights, and none larger than such a file is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from seap.errors import UserError
from seap.models.quantized import Quantization, recognised

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
READ_INSIDE = ("additional_chat_templates", "chat_templates", "seap")  # the folders in it that are read
_MB = 1 << 20
SIZES = {  # bytes at most, of the files that are parsed as a whole
    **dict.fromkeys(("config.json", "generation_config.json", "special_tokens_map.json", "seap.json"), 16 * _MB),
    **dict.fromkeys(("chat_template.jinja", "chat_template.json"), 4 * _MB),
    **dict.fromkeys((INDEX, "tokenizer_config.json", "added_tokens.json", "vocab.json", "vocab.txt"), 128 * _MB),
    **dict.fromkeys(("tokenizer.json", "tokenizer.model", "tekken.json", "merges.txt", "spiece.model"), 256 * _MB),
}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TOKENIZER_PATTERNS = ("*.tiktoken", "tiktoken.model", "sentencepiece*.model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LFS = b"version https://git-lfs"
CONVERT = (
    'convert it once, where you trust its source: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{0}').save_pretrained('{0}-safetensors')\", and copy the tokenizer's files there"
)
MERGE = "merge it into its model and give that: model.merge_and_unload().save_pretrained(DIR), with peft"
_QUANTIZED_NAMES = ("qweight", "qzeros", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv", "quant_state")


@dataclass(frozen=True)
class Folder:
    """A folder of a model that can be loaded. weights: the files that are read; none where only a config is there.

    quantization: how they are quantized, where they are; all others that can't be read are refused.
    """

    path: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    quantization: Quantization | None = None

    @property
    def bytes(self) -> int:
        """Of the weights that are read."""
        return sum(file.stat().st_size for file in self.weights)

    @property
    def taken_back(self) -> Quantization | None:
        """How weights are quantized that become floats as they are read."""
        return self.quantization if self.quantization is not None and self.quantization.is_read else None


def cant_load(name: Any, cause: str) -> UserError:
    """`can't load model 'x': cause, what to do`."""
    return UserError(f"can't load model {str(name)!r}: {cause}")


def look(path: Path) -> Folder:
    """Say what a folder is. Raises UserError, with what to do, for all that is no safetensors checkpoint of a model."""
    if not path.is_dir():
        raise cant_load(path, _what_file(path) if path.is_file() else "no such folder")
    check_files(path)
    if not (path / "config.json").is_file():
        raise cant_load(path, _without_config(path))
    config = read_json(path / "config.json")
    if (path / "adapter_config.json").is_file():
        raise cant_load(
            path, f"beside the model it holds an adapter (adapter_config.json), which would be lost; {MERGE}"
        )
    try:
        quantization = recognised(path, config)
    except UserError as error:
        raise cant_load(path, str(error)) from error
    return Folder(path, config, weights_of(path), quantization)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises UserError for anything else, and for a file of absurd size."""
    try:
        check_size(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise cant_load(path.parent, f"{path.name} can't be read as JSON ({error}); get the file again") from error
    if not isinstance(found, dict):
        raise cant_load(
            path.parent, f"{path.name} holds {type(found).__name__}, expected an object {{…}}; get the file again"
        )
    return found


def check_size(path: Path) -> None:
    """Raise UserError for a file that is larger than one of its name can be, or that only points to the real one."""
    most, size = SIZES.get(path.name, 256 * _MB), path.stat().st_size
    if size > most:
        raise cant_load(
            path.parent,
            f"{path.name} has {size:,} bytes, more than the {most:,} that such a file can have; get it again",
        )
    refuse_pointer(path)


def refuse_pointer(path: Path) -> None:
    """Raise UserError for the pointer that git leaves where it didn't fetch the large file."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise cant_load(
                path.parent,
                f"{path.name} is a Git LFS pointer, not the file itself: run git lfs pull in that folder, or fetch the "
                "model with hf download",
            )


def check_files(folder: Path) -> None:
    """Raise UserError for links that lead out of the folder, and for absurd sizes among what is read of it."""
    inside = [folder / name for name in READ_INSIDE if (folder / name).is_dir()]
    for part in (folder, *inside):
        for path in part.iterdir():
            check_link(path, folder)
            if path.is_file() and (path.name in SIZES or path.suffix in (".jinja", ".model", ".tiktoken")):
                check_size(path)
    for name, key in (("config.json", "configuration_files"), ("tokenizer_config.json", "fast_tokenizer_files")):
        if (folder / name).is_file():
            listed = read_json(folder / name).get(key, [])
            strange = [other for other in listed if not is_plain(other)] if isinstance(listed, list) else [listed]
            if strange:
                raise cant_load(folder, f"{name}: {key} names {strange[0]!r}, which is no file of this folder")


def check_link(path: Path, folder: Path) -> None:
    """Raise UserError for a link that leads out of the folder, unless into the blobs of the Hub's cache beside it."""
    if not path.is_symlink():
        return
    home = folder.resolve()
    allowed = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    target = path.resolve()
    if not any(target.is_relative_to(place) for place in allowed):
        raise cant_load(
            path.parent, f"{path.name} is a link that leads out of the folder, to {target}; put the file itself there"
        )


def is_plain(name: Any) -> bool:
    """Whether it names a file right in a folder: no path, nothing hidden."""
    return isinstance(name, str) and PurePath(name).name == name and not name.startswith(".") and "\\" not in name


def weights_of(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that are read. Raises UserError where there are others only, or an index names others."""
    if any(folder.glob("shard-*-model-*.safetensors")):
        raise cant_load(folder, "it is a distributed checkpoint (shard-…); save it with save_pretrained in one process")
    if (folder / ONE_FILE).is_file():
        return (folder / ONE_FILE,)
    if (folder / INDEX).is_file():
        return _indexed(folder)
    found = [path for pattern in PICKLES for path in sorted(folder.glob(pattern)) if path.name != "training_args.bin"]
    if found:
        raise cant_load(folder, f"its weights ({found[0].name}) are pickles, which are never read; " + _convert(folder))
    for name, what in {"tf_model.h5": "TensorFlow's", "flax_model.msgpack": "Flax's"}.items():
        if (folder / name).is_file():
            raise cant_load(folder, f"its weights ({name}) are {what}; give a model with safetensors")
    if any(folder.glob("*.gguf")):
        raise cant_load(folder, _gguf_inside(folder))
    others = sorted(folder.glob("*.safetensors"))
    if others:
        raise cant_load(
            folder,
            f"{others[0].name} is neither {ONE_FILE} nor named by an index ({INDEX}), so it isn't read; "
            "get the missing file, or give a folder that save_pretrained wrote",
        )
    return ()


def _indexed(folder: Path) -> tuple[Path, ...]:
    named = read_json(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise cant_load(folder, f"{INDEX} has no weight_map that says where the weights are; get the file again")
    files = list(dict.fromkeys(map(str, named.values())))
    for name in files:
        if not is_plain(name) or not name.endswith(".safetensors"):
            raise cant_load(
                folder,
                f"{INDEX} names {name!r}; only safetensors files of the folder itself are read. "
                "Get the model from a source that you trust",
            )
        if not (folder / name).is_file():
            raise cant_load(folder, f"{name}, which {INDEX} names, isn't there; get the missing file")
    return tuple(folder / name for name in files)


def quantized_names(names: Any) -> str:
    """The first weight whose name only quantized layers have; empty where there is none."""
    return next((name for name in names if name.rpartition(".")[2] in _QUANTIZED_NAMES), "")


def has_tokenizer(folder: Path) -> bool:
    """Whether any file of a tokenizer is there."""
    return any((folder / name).is_file() for name in TOKENIZERS) or any(
        next(folder.glob(pattern), None) for pattern in TOKENIZER_PATTERNS
    )


def _convert(path: Path) -> str:
    return CONVERT.format(path)


def _gguf_inside(folder: Path) -> str:
    found = next(folder.glob("*.gguf"))
    return f"its weights are a GGUF file; give that, {found}, or the model that it was made from"


def _what_file(path: Path) -> str:
    """Why a file is no model folder."""
    if path.suffix == ".safetensors" or path.name == "config.json":
        return f"it is one file of a model; give the folder {path.parent}"
    if path.match("*.bin") or path.suffix in (".pt", ".pth", ".ckpt", ".pkl"):
        return "it is a pickle, which is never read; give a folder with safetensors"
    return "it is a file, not a Hugging Face model folder"


def _without_config(folder: Path) -> str:
    """What a folder without config.json is."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        return f"it is an adapter (LoRA or the like) of {base!r}, without the model's own weights; {MERGE}"
    kinds = {
        "model_index.json": "a diffusers pipeline; give a causal language model",
        "openvino_model.xml": "an OpenVINO model; give the folder that it was exported from",
        "params.json": "in its authors' own format; give the same model as a Hugging Face folder",
    }
    for name, what in kinds.items():
        if (folder / name).is_file():
            return f"it is {what}"
    if any(folder.glob("*.gguf")):
        return _gguf_inside(folder)
    if any(folder.glob("*.onnx")):
        return "it is an ONNX model; give the folder that it was exported from"
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    hint = f"; is it one of those inside: {', '.join(inner[:5])}?" if inner else ""
    return f"it has no config.json: not a Hugging Face model folder{hint}"


HUB_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def is_hub_name(name: str) -> bool:
    """Whether a name can be one on the Hub (`org/model`), and so isn't surely a path."""
    return HUB_NAME.fullmatch(name) is not None and not name.endswith((".gguf", ".safetensors", ".bin"))
