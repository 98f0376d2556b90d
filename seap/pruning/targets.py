"""A size, a speed or memory as the target of a run: looked at before anything goes, and told of when it has gone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from seap.activations.ranks import Ranks, agreed
from seap.errors import UserError
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.models.decoders import refuse_wrapped
from seap.models.families import refuse_experts, refuse_other_caches
from seap.models.residency import streamed
from seap.models.sizes import saved_bytes
from seap.pruning.report import Run
from seap.selection.footprint import Footprint, asked, footprint_of, output_of, settled
from seap.selection.mask import budgets_of
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking
from seap.selection.targets import BY_STEPS
from seap.selection.within import in_params, plain
from seap.vocabulary.options import Vocabulary


def check_one_amount(options: Mapping[str, Any]) -> None:
    """Raise UserError where a sparsity and a target are given both."""
    targets = [name for name in ("target_size", "target_speed") if options.get(name) is not None]
    if targets and options.get("sparsity", Pruning.sparsity) != Pruning.sparsity:
        raise UserError(
            f"--{targets[0].replace('_', '-')} and --sparsity {options['sparsity']} both say how much to remove; leave "
            "one of them out"
        )


def check_countable(model: Any, options: Pruning) -> None:
    """Raise UserError for a model of which the options' cost isn't known."""
    if options.cost in BY_STEPS:
        refuse_experts(model.config, f"--cost {options.cost}", "count params or bytes")
        refuse_other_caches(model.config, f"--cost {options.cost}", "count params or bytes")
    if options.cost != "params":
        refuse_wrapped(model, f"--cost {options.cost}", "count params: the rest of such a model isn't counted yet")
    if options.cost == "milliseconds" and streamed(model) is not None:
        raise UserError(
            "--cost milliseconds (and --target-speed) times the model in memory, which --stream doesn't have; leave "
            "one of them out"
        )


def look_(
    model: Any,
    run: Run,
    masks: Masks | None,
    ranking: Ranking | None,
    save_dtype: str | torch.dtype | None,
    ranks: Ranks,
) -> None:
    """Have the run know what the model takes before anything goes, and the share of that which is asked.

    Not where parameters are counted, nor where masks stand and it is time that is.
    """
    run.saved_as = dtype_saved(model, save_dtype)
    if run.pruning.cost == "params" or (masks is not None and run.pruning.cost == "milliseconds"):
        return
    check_countable(model, run.pruning)
    there = None if ranking is None else ranking.footprint
    run.footprint = there or agreed(lambda: footprint_of(model, run.pruning, run.saved_as), ranks)
    if masks is None:
        run.pruning = settled(run.pruning, run.footprint)


def look_again_(model: Any, run: Run) -> None:
    """Once the vocabulary is cut."""
    if run.footprint is not None and run.vocabulary.is_cut:
        run.footprint = run.footprint.with_output(output_of(model, run.pruning, run.saved_as))


def is_met(run: Run) -> bool:
    """Whether nothing of the layers need go."""
    return not run.pruning.sparsity or (run.footprint is not None and run.footprint.fits({}, run.pruning.sparsity))


def dtype_saved(model: Any, save_dtype: str | torch.dtype | None) -> torch.dtype:
    """Of the weights on disk."""
    plan = streamed(model)
    if save_dtype is None:
        return plan.save_dtype if plan is not None else model.dtype
    return getattr(torch, save_dtype) if isinstance(save_dtype, str) else save_dtype


def foreseen(footprint: Footprint | None, vocabulary: Vocabulary, num_tokens: int) -> Footprint | None:
    """With as few tokens as may stay, before it is known how many do."""
    if footprint is None or not vocabulary.is_cut:
        return footprint
    stays = 0 if vocabulary.vocabulary == "auto" else int(vocabulary.vocabulary)
    return footprint.with_output(footprint.output * min(stays / num_tokens, 1.0))


def as_planned(model: Any, options: Pruning, dtype: torch.dtype, vocabulary: Vocabulary) -> Pruning:
    """The options in parameters, before anything is loaded or measured: exact for bytes, and otherwise as if what is
    counted went with the bytes.

    Raises UserError where a number of bytes can't be met, whatever the vocabulary will be.
    """
    if options.cost == "params":
        return options
    known = replace(options, cost="bytes", target_speed=None) if options.cost == "milliseconds" else options
    share = settled(options, footprint_of(model, known, dtype)).sparsity
    wanted = replace(known, cost="bytes", target_size=None, sparsity=share) if known.target_size is None else known
    wanted, arch = replace(wanted, sparsity=share), describe(model)
    whole = footprint_of(model, wanted, dtype)
    seen = whole if vocabulary.vocabulary == "auto" else foreseen(whole, vocabulary, model.config.vocab_size)
    try:
        return in_params(arch, wanted, seen)
    except UserError:
        if options.cost == "bytes" and vocabulary.vocabulary != "auto":
            raise
        if options.cost == "bytes":
            in_params(arch, wanted, foreseen(whole, vocabulary, model.config.vocab_size))
        return plain(options, share)


def check_met(footprint: Footprint | None, model: Any, masks: Masks, options: Pruning) -> None:
    """Raise UserError for masks that leave more than was asked. Of experts, that is seen by their parameters alone."""
    arch = describe(model)
    if footprint is None or any(axis.usage_key for axis in arch.axes):
        return
    budgets = budgets_of(arch.axes, masks)
    if not footprint.fits(budgets, options.sparsity):
        raise footprint.refusal(options, footprint.of(budgets), f" by --allocate {options.resolved().allocate}")


def told(model: Any, run: Run, budgets: Mapping[str, int]) -> dict[str, Any] | None:
    """For the report on a model that is cut: what was asked, what there was and what there is; None without a target.

    budgets: the widths that it has. What a token takes is by the curves that they were chosen by.
    """
    if run.footprint is None:
        return None
    options, cost = run.pruning, run.footprint.cost
    if cost == "bytes":
        after = float(saved_bytes(model, run.saved_as))
    elif cost == "memory":
        after = footprint_of(model, options, run.saved_as).of({})
    else:
        after = run.footprint.of(budgets)
    found: dict[str, Any] = {"asked": asked(options), "cost": cost, "before": run.footprint.dense}
    found |= {"most": run.footprint.most(options.sparsity), "after": after}
    return found | ({"context": options.context, "batch": options.batch} if cost in BY_STEPS else {})
