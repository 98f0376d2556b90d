"""What vLLM runs in each of its processes where seap is installed: it learns that `SeapForCausalLM` is a model.

The entry point `vllm.general_plugins` in pyproject.toml names `register`. Pruned models run on vLLM's Transformers
backend (vLLM 0.32; https://docs.vllm.ai/en/stable/design/plugin_system/), whose layers are those of transformers, so
what lets transformers build layers of different widths is all that it takes.
"""

from seap.models import modeling_seap

ARCHITECTURE = "SeapForCausalLM"
BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"


def register() -> None:
    """Name the backend of pruned checkpoints, once. vLLM imports it when a model asks for it, not before."""
    from vllm import ModelRegistry

    modeling_seap.install()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, BACKEND)
