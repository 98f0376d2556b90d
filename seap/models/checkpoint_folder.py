"""An opened folder → its model and tokenizer in memory: every weight of the config's, and none dropped in silence."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seap.models import configs, decoders, kinds, left_out, sight
from seap.models.configs import Opened
from seap.models.dequantize import dequantized
from seap.models.kinds import cant_load
from seap.models.quantized import GIVE
from seap.models.stacked import stack_to_files


def load(
    name: str,
    opened: Opened,
    *,
    dtype: str,
    trust_remote_code: bool = False,
    quantization_config: Any = None,
    stacks: Path | None = None,
) -> tuple[Any, Any]:
    """Model and tokenizer. Raises UserError for what is absent, misshapen or would be lost.

    stacks: a folder for experts' weights, which then are mapped from its files rather than stacked in memory.
    """
    if not opened.folder.weights:
        raise cant_load(name, f"it has no weights ({kinds.ONE_FILE}); get them, or give another folder")
    how = opened.folder.taken_back
    if how is not None and quantization_config is not None:
        raise cant_load(name, f"its weights are quantized already ({how.said}); {GIVE}")
    with configs.reading(name, "its weights can't be read"):
        mapped = None
        if stacks is not None:
            mapped = stack_to_files(configs.on_meta(opened.config), opened.folder.weights, stacks)
        if how is not None:
            said = dtype if dtype != "auto" else str(opened.config.dtype or "bfloat16").removeprefix("torch.")
            chosen = getattr(torch, said)
            model, loading = _from_tensors(opened, dequantized(opened.folder.weights, how, chosen), chosen)
            logging.getLogger("seap").warning("%s: %s", name, how.line())
        elif mapped is not None:
            model, loading = _from_tensors(opened, mapped, dtype if dtype == "auto" else getattr(torch, dtype))
        else:
            model, loading = _from_files(opened, dtype, trust_remote_code, quantization_config)
    check_complete(name, loading)
    model = decoders.decoder_of(model)
    left_out.settle_(model, loading["unexpected_keys"], name)
    return model, load_tokenizer(name, opened, trust_remote_code=trust_remote_code)


def _from_files(opened: Opened, dtype: str, trust_remote_code: bool, quantization_config: Any) -> tuple[Any, Any]:
    return decoders.auto_class(opened.config).from_pretrained(
        opened.folder.path,
        config=opened.config,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        local_files_only=not trust_remote_code,
        ignore_mismatched_sizes=True,  # they are refused by their names
        output_loading_info=True,
        **({} if quantization_config is None else {"quantization_config": quantization_config}),
    )


def _from_tensors(opened: Opened, tensors: Mapping[str, Tensor], dtype: Any) -> tuple[Any, Any]:
    """A model whose weights aren't as they lie in its files."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping[type(opened.config)].from_pretrained(
        None,
        config=opened.config,
        dtype=dtype,
        state_dict=dict(tensors),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )


def load_tokenizer(name: str, opened: Opened, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder, tried once: some of what its config says wrongly shows only where a text is read."""
    from transformers import AutoTokenizer

    path = opened.folder.path
    if not kinds.has_tokenizer(path) and not trust_remote_code:
        raise cant_load(name, "it has no tokenizer (tokenizer.json); copy those files from the model that it came from")
    with configs.reading(name, "its tokenizer can't be read"):
        tokenizer = AutoTokenizer.from_pretrained(
            path,
            config=opened.config,
            trust_remote_code=trust_remote_code,
            local_files_only=not trust_remote_code,
        )
        tokenizer.decode(tokenizer("", verbose=False)["input_ids"])
    sight.give_(tokenizer, path, opened.config, trust_remote_code=trust_remote_code)
    return tokenizer


def check_complete(name: str, loading: Mapping[str, Any]) -> None:
    """Raise UserError for weights that the model has and its files don't."""
    absent = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if absent:
        raise cant_load(name, f"{len(absent)} weights are missing or misshapen, such as {absent[0]}; get it again")
