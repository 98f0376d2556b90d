"""Whose tokens count: exact in moments, Fisher, damage, refit and loss under any split, merge, batch and rank."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MOE, model
from torch.nn.functional import cross_entropy, log_softmax

from seap.activations.calibration import about_statistics, calibrate
from seap.activations.distributed import share
from seap.activations.layerwise import Walk, split_rows
from seap.activations.moments import Moments
from seap.activations.ranks import Ranks
from seap.activations.stats import Statistics, load_statistics, merge, save_statistics
from seap.compensation.cross import CrossMoments
from seap.evaluation import metrics
from seap.models.arch import describe
from seap.models.modes import evaluation
from seap.pruning.prune import make_masks, make_repairs
from seap.scoring.sensitivity import drawn_words, fisher
from seap.selection.damage import Judge, probe_rows
from seap.selection.options import Pruning
from seap.text.contrast import Contrast
from seap.text.corpus import Corpus, batches
from seap.text.options import Calibration
from seap.text.rows import CountedRow, cut_to, num_counted, row_of

MODEL: Any = model("llama").eval()
ARCH = describe(MODEL)
CLOSE = {"rtol": 1e-4, "atol": 1e-6}

marked_row = st.lists(st.tuples(st.integers(3, 96), st.booleans()), min_size=3, max_size=12)
marked_rows = st.lists(marked_row, min_size=6, max_size=12)


def rows_of(marked: list[list[tuple[int, bool]]]) -> list[tuple[int, ...]]:
    """Rows whose second token at least is an answer's, so that something counts in each."""
    return [row_of([token for token, _ in row], [False, True, *(mark for _, mark in row[2:])]) for row in marked]


def inputs_alone(rows: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """What every consumer reads at the places that count, (N, C) float64, from each row alone."""
    found: dict[str, list[torch.Tensor]] = {axis.key: [] for axis in ARCH.axes}
    for row in rows:
        seen: dict[str, torch.Tensor] = {}
        handles = [
            ARCH.consumer(axis).register_forward_pre_hook(
                lambda _, inputs, key=axis.key, seen=seen: seen.__setitem__(key, inputs[0][0].double())
            )
            for axis in ARCH.axes
        ]
        with torch.no_grad():
            MODEL(torch.tensor([row]))
        for handle in handles:
            handle.remove()
        assert isinstance(row, CountedRow)
        for key, values in seen.items():
            found[key].append(values[torch.tensor(row.counted)])
    return {key: torch.cat(parts) for key, parts in found.items()}


def same(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    for name in ("mean", "m2", "co"):
        one, other = getattr(found, name), getattr(expected, name)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(marked=marked_rows, batch=st.integers(1, 60), parts=st.integers(1, 3), second=st.booleans())
def test_moments_are_of_the_places_that_count(marked: Any, batch: int, parts: int, second: bool) -> None:
    rows = rows_of(marked)
    options = Calibration(batch_tokens=batch, second_moments=second)
    whole = Corpus("toy", tuple(rows), "here")
    one = calibrate(MODEL, whole, options, progress=False)
    shards = [share(rows, Ranks(rank, parts)) for rank in range(parts)]
    merged = merge(calibrate(MODEL, replace(whole, rows=shard), options, progress=False) for shard in shards if shard)
    expected = {key: Moments.of(inputs, second=second) for key, inputs in inputs_alone(rows).items()}
    for key, moments in expected.items():
        same(one[key], moments)
        same(merged[key], moments)
        if second and one[key].held is not None:
            held = Moments.of(inputs_alone(list(split_rows(rows)[1]))[key], second=True)  # type: ignore[arg-type]
            same(one[key].held, held)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", sorted(MOE))
def test_experts_count_the_places_that_count(family: str) -> None:
    """What comes after the last place that counts changes nothing, since no token looks ahead."""
    net: Any = model(family).eval()
    tokens = torch.randint(3, 90, (12, 10), generator=torch.Generator().manual_seed(2)).tolist()
    marks = (False, True, True, False, True)
    whole = [CountedRow(tuple(row), (*marks, *[False] * 5)) for row in tokens]
    cut = [CountedRow(tuple(row[:5]), marks) for row in tokens]
    options = Calibration(second_moments=True)
    found, expected = (
        calibrate(net, Corpus("toy", tuple(rows), "here"), options, progress=False) for rows in (whole, cut)
    )
    assert any(axis.usage_key for axis in describe(net).axes)
    for key in expected:
        same(found[key], expected[key])


@settings(max_examples=8, deadline=None)
@given(marked=marked_rows, batch=st.integers(1, 60))
def test_fisher_is_of_the_places_that_count(marked: Any, batch: int) -> None:
    """Row by row, whatever rows are in a batch."""
    rows = rows_of(marked)
    with evaluation(MODEL):
        found = fisher(ARCH, rows, seed=3, batch_tokens=batch, progress=False)
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        ARCH.consumer(axis).register_forward_hook(lambda _, args, out, key=axis.key: outputs.__setitem__(key, out))
        for axis in ARCH.axes
    ]
    expected = {key: torch.zeros_like(value) for key, value in found.items()}
    for row in rows:
        counted = torch.tensor(row.counted)  # type: ignore[attr-defined]
        logits = MODEL(torch.tensor([row])).logits[0][counted]
        [alone] = batches([row], batch_tokens=99)
        sampled = drawn_words(logits.detach().softmax(-1), alone, 3)
        grads = torch.autograd.grad(cross_entropy(logits, sampled, reduction="sum"), list(outputs.values()))
        for key, grad in zip(outputs, grads, strict=True):
            own = grad[0][counted]
            expected[key] += own.t() @ own
    for handle in handles:
        handle.remove()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * float(found[key].abs().max()))


@settings(max_examples=10, deadline=None)
@given(marked=marked_rows, batch=st.integers(1, 60))
def test_damage_and_loss_are_of_the_places_that_count(marked: Any, batch: int) -> None:
    rows = rows_of(marked)
    weight = ARCH.layers[1].mlp.down_proj.weight
    judge = Judge.on(ARCH, rows, batch_tokens=batch)
    with torch.no_grad():
        expected = [log_softmax(MODEL(torch.tensor([row])).logits[0], -1) for row in rows]
        saved = weight.clone()
        weight.mul_(0.5)
        changed = [log_softmax(MODEL(torch.tensor([row])).logits[0], -1) for row in rows]
        found = judge.divergence(1)
        losses = metrics.loss(MODEL, [metrics.Row(row) for row in rows], batch_tokens=batch)
        weight.copy_(saved)
    kl, loss, count = 0.0, 0.0, 0
    for row, p, q in zip(rows, expected, changed, strict=True):
        places = [place for place, counts in enumerate(row.counted) if counts]  # type: ignore[attr-defined]
        kl += float((p.exp() * (p - q)).sum(-1)[places].sum())
        loss -= sum(float(q[place, row[place + 1]]) for place in places)
        count += len(places)
    assert found == pytest.approx(kl / count, rel=1e-3, abs=1e-7)
    assert losses.value == pytest.approx(loss / count, rel=1e-5)


@settings(max_examples=8, deadline=None)
@given(marked=marked_rows, batch=st.integers(1, 60))
def test_a_refit_sees_the_places_that_count(marked: Any, batch: int) -> None:
    """Its sums (`CrossMoments`) are over `Walk.real`."""
    rows = rows_of(marked)
    expected = inputs_alone(rows)["layers.0.channels"]
    with evaluation(MODEL):
        walk = Walk.start(ARCH, rows, batch_tokens=batch)
        sums = CrossMoments()
        seen: list[torch.Tensor] = []
        handle = ARCH.linear(0, "mlp.down_proj").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for index in range(len(walk.batches)):
            walk.run(0, index)
            values = walk.real(index, seen.pop())
            sums.update_(values, values)
        handle.remove()
    assert sums.count == len(expected)


def test_files_keep_what_counts(tmp_path: Path) -> None:
    rows = (row_of([5, 6, 7, 8], [False, True, False, True]), row_of([9, 5, 6], [False, False, True]))
    statistics = Statistics({"a": Moments.of(torch.randn(4, 3))}, rows)
    save_statistics(tmp_path / "a.safetensors", statistics, {"task": "a"})
    found = load_statistics(tmp_path / "a.safetensors")[0].rows
    assert found == rows and [row.counted for row in found] == [row.counted for row in rows]  # type: ignore[attr-defined]


def test_what_counts_goes_with_a_row_to_other_processes() -> None:
    """As Ray's actors and torchrun's ranks get it."""
    row = row_of([5, 6, 7, 8], [False, True, False, True])
    found = pickle.loads(pickle.dumps(replace(Corpus("a", (row,), "hash"), contrast=Contrast((row,), (row,)))))
    for one in (*found.rows, *found.contrast.right, *found.contrast.wrong):
        assert one == row and one.counted == row.counted


def test_rows_are_cut_by_what_counts() -> None:
    row = row_of(range(10, 20), [False] * 4 + [True, True, False, True, True, True])
    assert isinstance(row, CountedRow) and num_counted(row) == 5
    for count in (1, 2, 3, 5):
        part = cut_to(row, count)
        assert num_counted(part) == count and tuple(part) == tuple(row)[: len(part)]
    assert cut_to(row, 1) == row_of(range(10, 15), [False] * 4 + [True])
    assert row[:3] != tuple(row)[:3] and num_counted(row[:3]) == 0 and cut_to((1, 2, 3), 2) == (1, 2)
    held = [row] * 10
    assert sum(map(num_counted, probe_rows(held, 7, 0))) == 7


def test_what_doesnt_count_has_no_say() -> None:
    """Masks and repairs from answers alone differ from those of all tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 97, (30, 12), generator=draw).tolist()
    marks = [False] * 6 + [True] * 6
    options = Pruning(method="seap", score="obs", allocate="logistic", sequential=True, sparsity=0.4, min_channels=4)
    kept = []
    for rows in (tuple(map(tuple, ids)), tuple(row_of(row, marks) for row in ids)):
        corpus = Corpus("toy", rows, "here")
        part = {"toy": calibrate(MODEL, corpus, Calibration(second_moments=True), progress=False)}
        masks, settled = make_masks(MODEL, part, options)
        repairs = make_repairs(MODEL, masks, part, settled)
        kept.append((masks, repairs, part["toy"]["layers.0.channels"].count))
    assert kept[0][2] == 30 * 12 and kept[1][2] == 30 * 6
    assert any((kept[0][0][key] != kept[1][0][key]).any() for key in kept[0][0])
    assert kept[1][1].keys() and all(torch.isfinite(repair.bias).all() for repair in kept[1][1].values())


def test_statistics_of_choices_are_known_by_their_rows_and_by_what_counts_in_them() -> None:
    def key(*counted: bool) -> str:
        choices = Contrast((CountedRow((3, 4, 5), counted),), ((6, 7),))
        corpus = Corpus("choices", ((3, 4, 5),), "here", contrast=choices)
        return str(about_statistics(MODEL, corpus, Calibration())["key"])

    assert key(False, True, False) == key(False, True, False) != key(True, True, False)
