"""Model folders and Hub names in, models out: in memory, or streamed from their files. Pickles are never read."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from seap.disk.place import at_home
from seap.disk.whole import folder_beside
from seap.errors import UserError, first_line
from seap.models import checkpoint_folder, configs, decoders, gguf, headers, hub, kinds, modeling_seap
from seap.models.configs import Opened
from seap.models.families import find_family
from seap.models.kinds import cant_load
from seap.models.options import Dtype, Loading, Streaming
from seap.models.residency import Streamed, mark_
from seap.models.soundness import check_as_written, check_finite, check_finite_files
from seap.models.trial import settle_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

BUILTIN = "builtin"
WHOLE = "leave it out, on a machine whose memory holds the model"
HALF = (torch.bfloat16, torch.float16)


def resolve_model(name: str) -> str:
    """A folder or a Hub id; `builtin` is the model that comes with seap. Raises UserError for what is neither."""
    if name == BUILTIN:
        return str(model_path())
    path = at_home(name)
    if gguf.is_gguf(name):
        return str(path)
    if path.exists():
        if not path.is_dir() or not (path / "config.json").is_file():
            kinds.look(path)  # says what it is
        return str(path)
    if not kinds.is_hub_name(name):
        raise cant_load(name, "no such folder")
    return name


def name_of(model: Any) -> str:
    """What a loaded model is called in results: as it was given, `builtin` wherever seap is installed, or nothing."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return BUILTIN if name == str(model_path()) else name


def open_model(name: str, *, weights: bool = True, trust_remote_code: bool = False) -> Opened:
    """A model's folder with its config, checked against the headers of its weights; nothing is loaded yet.

    weights: of a model on the Hub, whether to fetch them; without, only what is small is fetched.
    """
    modeling_seap.install()
    path = Path(resolve_model(name))
    if not path.is_dir():
        path = hub.fetch(name, weights=weights, code=trust_remote_code)
    return configs.open_folder(path, trust_remote_code=trust_remote_code)


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The model's config, or its text decoder's, which agrees with its weights' headers; no weight is read."""
    if gguf.is_gguf(name):
        config = gguf.config_of(at_home(name))
        find_family(config)
        return config
    return decoders.text_config(open_model(name, weights=False, trust_remote_code=trust_remote_code).config)


def model_on_meta(name: str) -> Any:
    """The model, or the text decoder of a multimodal one, as its config says it: without weights, without memory."""
    if gguf.is_gguf(name):
        return configs.on_meta(load_config(name))
    return decoders.decoder_of(configs.on_meta(open_model(name, weights=False).config))


def refuse_multimodal(name: str, what: str, instead: str, *, trust_remote_code: bool = False) -> None:
    """Raise UserError for a folder of a multimodal model. what: that doesn't know such; instead: what to do."""
    if gguf.is_gguf(name):
        return
    config = open_model(name, weights=False, trust_remote_code=trust_remote_code).config
    if decoders.is_wrapper(config):
        raise UserError(f"{what} doesn't know multimodal models such as {config.model_type}; {instead}")


def check_device(device: str) -> str:
    """`auto` → a GPU if there is one. Raises UserError for a device that isn't here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device}: {first_line(error)}; use cpu, or a device that is here") from error
    return device


def load(
    name: str,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    skip_digests: bool = False,
    quantization_config: "QuantizationConfigMixin | None" = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a dense or pruned model and its tokenizer: `model, tokenizer = seap.load("DIR")`.

    dtype: auto (the checkpoint's), float32, bfloat16 or float16. device: auto (a GPU if there is one), cpu, cuda …
    skip_digests: don't hold the weight files of a folder of seap's against their digests.
    quantization_config: transformers' own, for weights that take fewer bits as they are loaded.
    Only safetensors and GGUF files are read, and no code of the checkpoint's runs unless `trust_remote_code`. Raises
    UserError for what isn't there, is damaged (by its digests, or NaN in it) or incomplete, or is of an unknown family.
    """
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code, "skip_digests": skip_digests, "dtype": dtype}
    model, tokenizer = _load(name, Loading(device=device, **code), quantization_config)
    check_finite(model, name)
    settle_threads(model)
    return model, tokenizer


def _load(
    name: str, loading: Loading, quantization_config: Any = None, *, stacks: Path | None = None
) -> tuple[Any, Any]:
    """`load`, without a look at the numbers. stacks: as of `checkpoint_folder.load`."""
    modeling_seap.install()
    place = check_device(loading.device)
    if gguf.is_gguf(name):
        config = load_config(name)
        model, tokenizer = _load_gguf(name, config, loading.dtype, quantization_config)
    else:
        opened = open_model(name, trust_remote_code=loading.trust_remote_code)
        if not loading.skip_digests:
            check_as_written(opened.folder.path)
        if quantization_config is not None:
            check_finite_files(opened.folder.path, name)
        model, tokenizer = checkpoint_folder.load(
            name,
            opened,
            dtype=loading.dtype,
            trust_remote_code=loading.trust_remote_code,
            quantization_config=quantization_config,
            stacks=stacks,
        )
        if str(opened.folder.path) != resolve_model(name):
            model.config._name_or_path = name  # what the report says, not the place in the Hub's cache
    return model.to(place).eval(), tokenizer


def _load_gguf(name: str, config: Any, dtype: str, quantization_config: Any) -> tuple[Any, Any]:
    if quantization_config is not None:
        raise UserError(f"{name} is a GGUF file, whose weights can't be quantized as they are loaded; give a folder")
    model, tokenizer, loading = gguf.load(at_home(name), config, dtype)
    checkpoint_folder.check_complete(name, loading)
    return model, tokenizer


def load_for_work(name: str, *, in_batches: bool = False, **loading: Any) -> tuple[Any, Any]:
    """As `load`, for commands that compute a lot: auto is float32 where the checkpoint's own 16 bits would be slow.

    in_batches: for one that reads text rather than writes it (`settle_threads`). loading: the fields of `Loading`.
    `model.config.dtype` still says the checkpoint's own.
    """
    given = Loading(**loading)
    model, tokenizer = _load(name, given)
    check_finite(model, name)
    model = model.float() if given.dtype == "auto" and slow_on_cpu(model) else model
    settle_threads(model, in_batches=in_batches)
    return model, tokenizer


def load_streamed(
    name: str, shards: Path, *, offload_dir: Path | None = None, save_dtype: str | None = None, **loading: Any
) -> tuple[Any, Any]:
    """A model whose weights stay in their files, to be worked with layer by layer (see `residency.py`).

    shards: a folder for finished layers, and for experts' weights that their files have one by one. loading: the fields
    of `Loading`, dtype and device being those of the arithmetic; auto is as in `load_for_work`.
    """
    given = Loading(**loading)
    if gguf.is_gguf(name):
        raise UserError(
            f"--stream reads weights where they lie in safetensors files, and {name} is a GGUF file; leave it out, "
            "or give the model's safetensors folder"
        )
    place = torch.device(check_device(given.device))
    opened = open_model(name, weights=False, trust_remote_code=given.trust_remote_code)
    if (how := opened.folder.quantization) is not None:
        raise UserError(
            f"--stream reads weights where they lie, and those of {name} are quantized ({how.said}); leave it out, or "
            "give the unquantized model"
        )
    refuse_multimodal(name, "--stream", WHOLE, trust_remote_code=given.trust_remote_code)
    stacks = shards if find_family(decoders.text_config(opened.config)).experts is not None else None
    model, tokenizer = _load(name, replace(given, device="cpu", dtype="auto"), stacks=stacks)
    check_finite(model, name, in_files=True)
    settle_threads(model, in_batches=True)
    own = model.dtype
    if given.dtype == "auto":
        working = torch.float32 if place.type == "cpu" and own in HALF and not has_16_bit() else own
    else:
        working = getattr(torch, given.dtype)
    stored = getattr(torch, save_dtype) if save_dtype else own if given.dtype == "auto" else working
    mark_(model, Streamed(working, place, stored, shards, offload_dir))
    return model, tokenizer


@contextlib.contextmanager
def loaded(
    name: str, out: Path, loading: Mapping[str, Any], save_dtype: str | None, streaming: Streaming
) -> Iterator[tuple[Any, Any]]:
    """Model and tokenizer, in memory or to be streamed with a folder beside `out` for what is finished."""
    if not streaming.stream:
        check_memory(name)
        model, tokenizer = load_for_work(name, **loading)
        check_not_quantized(model)
        yield model, tokenizer
        return
    with folder_beside(out) as shards:
        yield load_streamed(name, shards, offload_dir=streaming.offload_dir, save_dtype=save_dtype, **loading)


def slow_on_cpu(model: Any) -> bool:
    """Whether a 16-bit model is better computed with in float32: no 16-bit instructions, and it would fit."""
    if model.device.type != "cpu" or model.dtype not in HALF or has_16_bit() or quantized(model):
        return False
    return 2 * weight_bytes(model) < free_memory() // 2


def has_16_bit() -> bool:
    """Whether the CPU computes in 16 bits; where that can't be known, no, since float32 is the safe guess."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def free_memory() -> int:
    """Bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def check_memory(name: str) -> None:
    """Raise UserError for a model folder whose weights, of the files that are read, don't fit in memory."""
    path, free = Path(resolve_model(name)), free_memory()
    if gguf.is_gguf(name):
        needed = gguf.weight_bytes(path, "float32")  # as transformers reads it
        if needed > free:
            said = f"{needed / 1e9:.1f} GB as it is read, and {free / 1e9:.1f} GB of memory is free"
            raise UserError(f"{name} takes {said}")
        return
    if not path.is_dir():
        return
    folder = kinds.look(path)
    headers.read_headers(folder.weights)  # a damaged file is no large one
    how, needed = folder.taken_back, folder.bytes
    if how is not None and (grown := needed * how.growth) > free:
        raise UserError(
            f"{name} takes {grown / 1e9:.1f} GB once its quantized weights ({how.said}) are floats, and "
            f"{free / 1e9:.1f} GB of memory is free; give the unquantized model, with --stream"
        )
    if needed > free:
        raise UserError(
            f"{name} has {needed / 1e9:.1f} GB of weights and {free / 1e9:.1f} GB of memory is free; add --stream"
        )


def weight_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def quiet_transformers() -> None:
    """Only errors from transformers, and no bars of its own: seap shows its own progress.

    Nor a word from torchao, which transformers imports where it is installed, about kernels for other machines.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def quantized(model: nn.Module) -> bool:
    """Whether the config says so, or a weight is no plain tensor."""
    said = getattr(model.config, "quantization_config", None) is not None
    return said or any(type(parameter) is not nn.Parameter for parameter in model.parameters())


def check_not_quantized(model: nn.Module) -> None:
    """Raise UserError for weights that can be neither cut nor written in another form."""
    if quantized(model):
        raise UserError("the model is quantized; start from the unquantized one: prune first, quantize last")


def model_path() -> Path:
    """The folder of the shipped model, for from_pretrained."""
    return Path(__file__).parent / "builtin_model"
