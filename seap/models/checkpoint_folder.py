"""An opened folder → its model and tokenizer in memory: every weight of the config's, and none dropped in silence."""

from collections.abc import Mapping
from typing import Any

import torch

from seap.models import configs, kinds, left_out
from seap.models.configs import Opened
from seap.models.kinds import cant_load


def load(
    name: str, opened: Opened, *, dtype: str, trust_remote_code: bool = False, quantization_config: Any = None
) -> tuple[Any, Any]:
    """Model and tokenizer. Raises UserError for what is absent, misshapen or would be lost."""
    if not opened.folder.weights:
        raise cant_load(name, f"it has no weights ({kinds.ONE_FILE}); get them, or give another folder")
    with configs.reading(name, "its weights can't be read"):
        model, loading = _from_files(opened, dtype, trust_remote_code, quantization_config)
    check_complete(name, loading)
    left_out.settle_(model, loading["unexpected_keys"], name)
    return model, load_tokenizer(name, opened, trust_remote_code=trust_remote_code)


def _from_files(opened: Opened, dtype: str, trust_remote_code: bool, quantization_config: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
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
    return tokenizer


def check_complete(name: str, loading: Mapping[str, Any]) -> None:
    """Raise UserError for weights that the model has and its files don't."""
    absent = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if absent:
        raise cant_load(name, f"{len(absent)} weights are missing or misshapen, such as {absent[0]}; get it again")
