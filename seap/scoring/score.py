"""Scores: how much each input of a consumer, and so each unit, matters for a task.

Per input i of the linear W (O, C) that reads an axis, with h its input over the calibration tokens:

- `wifv`      Var(h_i) · ‖W[:,i]‖₂²       FLAP (An et al., 2024), eq. 5; SEAP's s_F (arXiv 2503.07605, eq. 12)
- `wifv-flap` the same, squared for attention before heads are summed: what FLAP's published code does
- `wanda`     ‖h_i‖₂² · ‖W[:,i]‖₁         SEAP's s_W (eq. 13)
- `wanda-sp`  ‖h_i‖₂ · ‖W[:,i]‖₁          the Wanda-sp baseline of FLAP's code (up to a constant, 1/O)
- `obs`       the output error that is left after reconstruction when the unit goes, in order of removal (`obs.py`)
- `obs-fisher` the same, the error weighed by how much the loss moves with it (`sensitivity.py`)
- `magnitude` ‖W[:,i]‖₂                   weights alone
- `random`    uniform in [0, 1), by seed and axis

A unit's score is the sum over its inputs. SEAP's code takes the mean over a head: the same order inside an axis.
Shapes: C inputs of the consumer, U units.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from seap.activations.moments import Moments
from seap.activations.stats import Statistics
from seap.compensation.compensate import fitting
from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import KV_GROUPS, Axis
from seap.models.residency import as_computed, release
from seap.scoring.obs import removal
from seap.scoring.sensitivity import root

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
    moments = fitting(axis, moments)
    columns = weight.cpu().double().split(axis.num_inputs // moments.num_blocks, 1)
    parts = zip(columns, moments.split(), strict=True)
    scores = torch.cat([removal(part, own, axis.unit_inputs).scores() for part, own in parts])
    return scores.repeat_interleave(axis.unit_inputs) / axis.unit_inputs


ACTIVATION_SCORES: dict[str, Callable[[Axis, Tensor, Moments], Tensor]] = {
    "wifv": _wifv,
    "wifv-flap": _wifv_flap,
    "wanda": _wanda,
    "wanda-sp": _wanda_sp,
    "obs": _obs,
    "obs-fisher": _obs,
}


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
) -> Scores:
    """Score every input of every consumer.

    sensitivity: for `obs-fisher`, axis key → F (O, O) of `measure_sensitivity`. axes: only of these.

    Returns axis key → float64 (C,) on the CPU. Raises ValueError when a score isn't finite, with the axis named.
    """
    scores: Scores = {}
    for axis in arch.axes if axes is None else axes:
        weight = as_computed(arch.model, arch.weight(axis.layer, axis.consumer).detach())
        if name == "random":
            score = _random(axis, seed)
        elif name == "magnitude":
            score = _l2_squared(weight).sqrt()
        else:
            assert statistics is not None, f"{name} needs statistics"
            if name == "obs-fisher":
                assert sensitivity is not None, f"{name} needs the loss's sensitivity"
                weight = root(sensitivity[axis.key]).double() @ weight.cpu().double()
                release(arch.model, [sensitivity[axis.key]])
            score = ACTIVATION_SCORES[name](axis, weight, statistics[axis.key])
        if not torch.isfinite(score).all():
            raise UserError(f"{arch.name_of(axis)}: score {name} is not finite; are the model's weights sound?")
        scores[axis.key] = score.cpu()
        release(arch.model, arch.layers[axis.layer].parameters())
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
