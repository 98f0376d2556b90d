"""Whether what is given is a model itself, not something that holds one."""

from typing import Any

from seap.errors import UserError
from seap.models.decoders import is_wrapper

# what models are wrapped in → what to give instead
WRAPPERS = {
    "peft.": "merge the adapter and give the model that this returns: model.merge_and_unload()",
    "torch._dynamo.": "give the model itself, model._orig_mod: prune first, compile afterwards",
    "torch.nn.parallel.": "give the model itself: model.module",
    "torch.distributed.": "give the model itself, whole and in one process",
    "transformers.pipelines.": "give its model: pipeline.model",
}


def check_bare(model: Any) -> None:
    """Raise UserError for what only holds a model, or is none."""
    kind = type(model)
    for start, what in WRAPPERS.items():
        if kind.__module__.startswith(start):
            raise UserError(f"a {kind.__name__} is no plain model; {what}")
    if not hasattr(kind, "get_output_embeddings"):
        raise UserError(f"a {kind.__name__} is no causal language model of transformers; give what seap.load gives")
    if is_wrapper(model.config):
        raise UserError(f"a {kind.__name__} holds a text decoder and more; give what seap.load gives of its folder")
