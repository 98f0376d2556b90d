"""seap: makes large language models cheaper to run for the tasks their user has, by pruning without training.

    import seap
    model, tokenizer = seap.load("meta-llama/Llama-3.2-1B")
    report = seap.prune(model, tokenizer, task="gsm8k", sparsity=0.5)
    model.save_pretrained("llama-gsm8k")  # with seap.json, the masks and a card beside the weights
    seap.evaluate(model, tokenizer, task="gsm8k", dense="meta-llama/Llama-3.2-1B")

Importing seap lets transformers load pruned checkpoints; everything heavier is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

from seap.models import modeling_seap

__version__ = "0.2.0"

if TYPE_CHECKING:
    from seap.evaluation.figures import evaluate as evaluate
    from seap.evidence.promised import prune_to_promise as prune_to_promise
    from seap.exports.export import export as export
    from seap.exports.quantization import quantize_ as quantize_
    from seap.models.loader import load as load
    from seap.models.prepack import prepack_ as prepack_
    from seap.page.compared import analyze as analyze
    from seap.page.compared import compare as compare
    from seap.pruning.prune import calibrate as calibrate
    from seap.pruning.prune import prune as prune
    from seap.serving.networks.network import load_networks as load_networks
    from seap.serving.networks.runtime import TaskRuntime as TaskRuntime

_EXPORTS = {
    "prune": "seap.pruning.prune",
    "evaluate": "seap.evaluation.figures",
    "compare": "seap.page.compared",
    "analyze": "seap.page.compared",
    "export": "seap.exports.export",
    "prune_to_promise": "seap.evidence.promised",
    "calibrate": "seap.pruning.prune",
    "prepack_": "seap.models.prepack",
    "quantize_": "seap.exports.quantization",
    "load": "seap.models.loader",
    "load_networks": "seap.serving.networks.network",
    "TaskRuntime": "seap.serving.networks.runtime",
}
__all__ = [
    "TaskRuntime",
    "__version__",
    "analyze",
    "calibrate",
    "compare",
    "evaluate",
    "export",
    "load",
    "load_networks",
    "prepack_",
    "prune",
    "prune_to_promise",
    "quantize_",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'seap' has no attribute {name!r}")


modeling_seap.install()
