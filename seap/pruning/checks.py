"""What can be refused of a pruning before any text is read, and its options as they were given."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from seap.methods import FIRST_ORDER, METHODS
from seap.models import left_out
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.models.families import refuse_experts
from seap.models.layer_config import stays_whole
from seap.models.residency import streamed
from seap.pruning.notes import notes_on_experts
from seap.pruning.ready import check_in_memory
from seap.pruning.streaming import check_streamable
from seap.pruning.targets import check_countable
from seap.pruning.whole_layers import check_dense
from seap.selection.footprint import Footprint, footprint_of
from seap.selection.mask import check_fits
from seap.selection.options import Pruning
from seap.selection.targets import WORDS
from seap.selection.timing import best_rounding
from seap.selection.usage import keep_experts
from seap.selection.within import budgets_for, in_params
from seap.text.options import Calibration
from seap.vocabulary import options as vocabularies


def with_rounding(model: Any, options: Pruning) -> tuple[Pruning, list[str]]:
    """--round-to auto as the number that is best here, and what was measured."""
    if options.round_to:
        return options, []
    refuse_experts(model.config, "--round-to auto", "give a number of channels, such as 64")
    best, times = best_rounding(describe(model), options.sparsity)
    figures = ", ".join(f"{multiple}: {value:.3f}" for multiple, value in times.items())
    return replace(options, round_to=best), [f"--round-to {best} was chosen by time (µs per channel: {figures})"]


def split_options(options: Mapping[str, Any]) -> tuple[Pruning, Calibration]:
    """Keyword arguments → the two dataclasses that own them."""
    ours, theirs = ({f.name for f in fields(kind)} for kind in (Pruning, Calibration))
    strange = options.keys() - ours - theirs
    if strange:
        known = sorted(ours | theirs | {*vocabularies.NAMES})
        raise TypeError(f"unknown options {sorted(strange)}; known: {known}")
    pruning = Pruning(**{name: value for name, value in options.items() if name in ours})
    return pruning, Calibration(**{name: value for name, value in options.items() if name in theirs})


def needs_text(options: Pruning, masks: Masks | None) -> bool:
    """Whether any stage of this run looks at activations."""
    return options.resolved().compensate != "none" if masks is not None else options.needs_text


def check(model: Any, options: Pruning, masks: Masks | None = None, footprint: Footprint | None = None) -> list[str]:
    """Refuse what can't be done before any text is read; return what the user should know about this run.

    footprint: what the model takes, where the options count something else than parameters.
    """
    check_in_memory(model)
    if streamed(model) is not None:
        check_streamable(options)
    arch = describe(model)
    check_countable(model, options)
    method = options.resolved()
    whole = method.allocate == "whole-layers"
    if method.score in FIRST_ORDER:
        refuse_experts(model.config, f"--score {method.score}", "its units are rows of plain linears; use --score obs")
    if METHODS[options.method].axes and options.axes is None:
        refuse_experts(model.config, f"--method {options.method}", "use --method obs")
    if whole:
        refuse_experts(model.config, "--allocate whole-layers", "use --allocate uniform")
        check_dense(model)
    if masks is None:
        nothing = {axis.key: torch.zeros(axis.num_inputs, dtype=torch.float64) for axis in arch.axes}
        if footprint is None and options.cost in ("bytes", "memory"):
            footprint = footprint_of(model, options)
        plain = in_params(arch, options, footprint)
        budgets_for(arch, options, nothing, footprint=footprint, axes=keep_experts(arch, plain, nothing))
    else:
        check_fits(arch, masks)
    notes = left_out.note(model) + [f"{name} has no effect with these choices" for name in options.unused()]
    if not arch.can_cut_heads and options.cut_axes is None and not whole and options.sparsity > 0:
        notes.append(f"only MLP channels are cut: the heads of {arch.family.model_type} stay, {arch.heads_refused}")
    notes += [] if whole or options.sparsity == 0 else stays_whole(arch)
    notes += notes_on_experts(arch, options)
    if options.cost != "params":
        notes.append(f"what is asked is of {WORDS[options.cost]}, so the share of parameters differs")
    if getattr(model.config, "seap", None):
        notes.append("the model is already pruned; the sparsity is of what is left of it")
    return notes
