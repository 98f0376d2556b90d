"""Scores: how much each input of a consumer, and so each unit, matters for a task.

Per input i of the linear W (O, C) that reads an axis, with h its input over the calibration tokens:

- `wifv`      Var(h_i) · ‖W[:,i]‖₂²       FLAP (An et al., 2024), eq. 5; SEAP's s_F (arXiv 2503.07605, eq. 12)
- `wifv-flap` the same, squared for attention before heads are summed: what FLAP's published code does
- `wanda`     ‖h_i‖₂² · ‖W[:,i]‖₁         SEAP's s_W (eq. 13)
- `wanda-sp`  ‖h_i‖₂ · ‖W[:,i]‖₁          the Wanda-sp baseline of FLAP's code (up to a constant, 1/O), on the dense
  model's activations; the code's own are behind the pruned layers (`selection/behind.py`)
- `obs`       the output error that is left after reconstruction when the unit goes, in order of removal (`obs.py`)
- `obs-fisher` the same, the error weighed by how much the loss moves with it (`sensitivity.py`)
- `leverage`  [C (C + λI)⁻¹]_ii            ridge leverage of h's second moments C about zero: MoDeGPT (Lin et al., 2024,
  arXiv 2408.09632, algorithm 1) for MLP channels; λ, which has no published code, is `compensate.UNTESTED_DAMPING` over
  the mean of C's diagonal
- `magnitude` ‖W[:,i]‖₂                   weights alone
- `random`    uniform in [0, 1), by seed and axis

Of all weights that an axis runs through, or of a whole layer:

- `taylor`, `gisp`, `gisp-mean`           gradients of the task's loss (`first_order.py`)
- `block-influence`                       how much a layer turns the hidden state (`influence.py`)

A unit's score is the sum over its inputs. SEAP's code takes the mean over a head: the same order inside an axis.
Shapes: C inputs of the consumer, U units.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from seap.activations.moments import Moments
from seap.activations.stats import Statistics
from seap.allocation import give_back
from seap.compensation.compensate import UNTESTED_DAMPING, fitting
from seap.compensation.damped import solve_damped
from seap.errors import UserError
from seap.methods import RECONSTRUCTING, RUNNING
from seap.models.arch import Arch
from seap.models.axes import KV_GROUPS, Axis
from seap.models.residency import as_computed, release
from seap.models.shelf import rest
from seap.models.solving import solver_of
from seap.scoring.first_order import first_order, unit_size
from seap.scoring.influence import block_influence
from seap.scoring.obs import removal
from seap.scoring.sensitivity import root
from seap.text.contrast import NO_CONTRAST
from seap.text.options import Calibration

Scores = dict[str, Tensor]  # axis key → float64 (C,), one per input of the consumer


def _summing(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.device.type == "mps" else torch.float64  # MPS has no float64


def _l1(weight: Tensor) -> Tensor:
    return weight.float().abs().sum(0, dtype=_summing(weight)).cpu().double()


def _l2_squared(weight: Tensor) -> Tensor:
    """Squares in float32, summed in float64, where the weight is."""
    return weight.float().square().sum(0, dtype=_summing(weight)).cpu().double()


def _wifv(axis: Axis, weight: Tensor, moments: Moments) -> Tensor:
    return moments.variance * _l2_squared(weight)


def _wifv_flap(axis: Axis, weight: Tensor, moments: Moments) -> Tensor:
    score = _wifv(axis, weight, moments)
    return score.square() if axis.name == KV_GROUPS else score


def _wanda(axis: Axis, weight: Tensor, moments: Moments) -> Tensor:
    return moments.norm.square() * _l1(weight)


def _wanda_sp(axis: Axis, weight: Tensor, moments: Moments) -> Tensor:
    return moments.norm * _l1(weight)


def _obs(axis: Axis, weight: Tensor, moments: Moments) -> Tensor:
    columns = weight.double().split(axis.num_inputs // moments.num_blocks, 1)
    parts = zip(columns, moments.split(), strict=True)
    scores = torch.cat([removal(part, own, axis.unit_inputs).scores() for part, own in parts])
    return scores.repeat_interleave(axis.unit_inputs) / axis.unit_inputs


def _leverage(axis: Axis, weight: Tensor, moments: Moments) -> Tensor:
    """The weight doesn't matter. Of a unit of several inputs, the sum over them."""
    return torch.cat([_leverages(part) for part in moments.about_zero().split()])


def _leverages(moments: Moments) -> Tensor:
    """Diagonal of C (C + λI)⁻¹ (C,)."""
    covariance = moments.covariance
    solved = solve_damped(covariance, covariance, UNTESTED_DAMPING)
    return solved.diagonal().clamp(0, 1)


def _reconstructed(
    name: str, axis: Axis, weight: Tensor, moments: Moments, sensitivity: Tensor | None, by_head: bool
) -> Tensor:
    """A score that solves systems, where its tensors are. sensitivity: F (O, O), by which the error is weighed."""
    if sensitivity is not None:
        weight = root(sensitivity).double() @ weight.double()
    score = ACTIVATION_SCORES[name](axis, weight, moments)
    if by_head and axis.queries > 1 and name in OF_UNITS:
        return _dealt(axis, score, ACTIVATION_SCORES[name](axis.each_head(), weight, moments))
    return score


ACTIVATION_SCORES: dict[str, Callable[[Axis, Tensor, Moments], Tensor]] = {
    "wifv": _wifv,
    "wifv-flap": _wifv_flap,
    "wanda": _wanda,
    "wanda-sp": _wanda_sp,
    "obs": _obs,
    "obs-fisher": _obs,
    "leverage": _leverage,
}
OF_UNITS = ("obs", "obs-fisher")  # whose inputs score alike within a unit


def _dealt(axis: Axis, groups: Tensor, heads: Tensor) -> Tensor:
    """Scores (C,) whose sum over a KV group is that of `groups`, and is dealt to its query heads as `heads` are.

    So groups are in the same order whether single heads may go or not.
    """
    group, head = (part.view(axis.units, axis.queries, -1).sum(2) for part in (groups, heads))
    shares = head.clamp_min(torch.finfo(torch.float64).tiny)
    each = group.sum(1, keepdim=True) * shares / shares.sum(1, keepdim=True)
    size = axis.unit_inputs // axis.queries
    return each.flatten().repeat_interleave(size) / size


def _random(axis: Axis, seed: int) -> Tensor:
    word = hashlib.sha256(f"{seed}:{axis.key}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(word, "little") >> 1)
    return torch.rand(axis.entries, dtype=torch.float64, generator=generator).repeat_interleave(axis.unit_inputs)


def score_inputs(
    arch: Arch,
    statistics: Statistics | None,
    name: str,
    *,
    seed: int = 0,
    sensitivity: Mapping[str, Tensor] | None = None,
    axes: Sequence[Axis] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    by_head: bool = False,
    progress: bool = False,
) -> Scores:
    """Score every input of every consumer.

    sensitivity: for `obs-fisher`, axis key → F (O, O) of `measure_sensitivity`. axes: only of these. masks: the units
    that are there, for scores of gradients. by_head: whether the query heads of a KV group are told apart by scores
    that are of whole units (`obs`, `random`).

    Returns axis key → float64 (C,) on the CPU. Raises ValueError when a score isn't finite, with the axis named.
    """
    if name in RUNNING:
        assert statistics is not None, f"{name} needs text"
        return _running(arch, statistics, name, masks, progress)
    scores: Scores = {}
    for axis in arch.axes if axes is None else axes:
        weight = as_computed(arch.model, arch.weight(axis.layer, axis.consumer).detach())
        if name == "random":
            score = _random(axis, seed)
            score = _dealt(axis, score, _random(axis.each_head(), seed)) if by_head and axis.queries > 1 else score
        elif name == "magnitude":
            score = _l2_squared(weight).sqrt()
        else:
            assert statistics is not None, f"{name} needs statistics"
            if name in RECONSTRUCTING:
                assert name != "obs-fisher" or sensitivity is not None, f"{name} needs the loss's sensitivity"
                weighed = sensitivity[axis.key] if sensitivity is not None and name == "obs-fisher" else None
                give_back()
                solver, moments = solver_of(arch, axis.layer), fitting(axis, statistics)
                score = solver(_reconstructed, name, axis, weight, moments, weighed, by_head)
                rest(sensitivity or {}, axis.key)
            else:
                score = ACTIVATION_SCORES[name](axis, weight, statistics[axis.key])
        scores[axis.key] = _finite(arch, axis, name, score.cpu())
        release(arch.model, arch.layers[axis.layer].parameters())
    return scores


def _finite(arch: Arch, axis: Axis, name: str, score: Tensor) -> Tensor:
    if not torch.isfinite(score).all():
        raise UserError(f"{arch.name_of(axis)}: score {name} is not finite; are the model's weights sound?")
    return score


def _running(
    arch: Arch, statistics: Statistics, name: str, masks: Mapping[str, Tensor] | None, progress: bool
) -> Scores:
    """Scores for which the model runs on the text; each unit's (or layer's) in equal parts on its inputs."""
    tokens = Calibration.batch_tokens
    if name == "block-influence":
        found = block_influence(arch, statistics.rows, batch_tokens=tokens, progress=progress)
        inputs = [sum(axis.num_inputs for axis in arch.layer_axes(layer)) for layer in range(len(found))]
        shares = [value / count for value, count in zip(found, inputs, strict=True)]
        return {axis.key: torch.full((axis.num_inputs,), shares[axis.layer], dtype=torch.float64) for axis in arch.axes}
    chosen = statistics.contrast if name != "taylor" else NO_CONTRAST
    rows = chosen.right or statistics.rows
    sums = first_order(arch, rows, less=chosen.wrong, masks=masks, batch_tokens=tokens, progress=progress)
    scores = {}
    for axis in arch.axes:
        each = sums[axis.key] / unit_size(axis, name, arch.weights(axis)) / axis.unit_inputs
        scores[axis.key] = _finite(arch, axis, name, each.repeat_interleave(axis.unit_inputs))
    return scores


def unit_scores(axis: Axis, inputs: Tensor) -> Tensor:
    """Sum over the inputs of each unit: (C,) → (U,); of experts, (E·U,)."""
    return inputs.view(axis.entries, axis.unit_inputs).sum(1)


def mix(scores: Mapping[str, Scores], weights: Mapping[str, float] | None = None, *, normalise: bool = True) -> Scores:
    """One score for several tasks: Σ_t w_t · s_t (SEAP-gen).

    With `normalise` each task's scores are first divided by their mean over the axis, so that the task with the largest
    activations doesn't decide alone; without it, the raw sum of the published code.
    """
    weights = weights or {}
    mixed: Scores = {}
    for task, part in scores.items():
        weight = float(weights.get(task, 1.0))
        for key, score in part.items():
            scale = score.mean().clamp_min(torch.finfo(torch.float64).tiny) if normalise else 1.0
            term = weight * score / scale
            mixed[key] = mixed[key] + term if key in mixed else term
    return mixed
