"""What users should know about a run beside its figures."""

from seap.compensation.compensate import Repairs
from seap.models.arch import Arch
from seap.selection.options import Pruning


def notes_on(repairs: Repairs, options: Pruning, realised: float, *, chosen: bool) -> list[str]:
    """Where reconstruction fell back on the bias, how many layers or steps it was. chosen: whether units were, here."""
    method = options.resolved()
    if method.allocate == "whole-layers":
        return [f"whole layers went: {realised:.4f} is the least that is not below the target"]
    if method.allocate == "iterative" and chosen:
        return [f"units went in {options.spent.steps} steps, each with gradients of its own"]
    fell_back = [key for key, repair in repairs.items() if repair.about == "bias"]
    if method.compensate != "ridge" or not fell_back:
        return []
    return [f"reconstruction was no better than the bias on held-out text for {', '.join(fell_back)}"]


def notes_on_experts(arch: Arch, options: Pruning) -> list[str]:
    """What users of a mixture of experts should know, and users of other models who asked for experts."""
    axes = [axis for axis in arch.axes if axis.usage_key]
    if not axes:
        return ["--experts has no effect: this model has none"] if options.experts != "auto" else []
    notes = []
    if options.resolved().compensate == "bias":
        notes.append("experts have no bias that could make up for what goes, so they stay uncompensated")
    if options.round_to % 8 and any(axis.name in (options.cut_axes or (axis.name,)) for axis in axes):
        notes.append(
            "transformers runs experts one by one, slowly on GPUs, where their width is no multiple of 8; --round-to 8 "
            "keeps its grouped kernels"
        )
    return notes
