"""Analysis against hand-made cases: overlap, chance, silhouettes, hidden means, spans of text; and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROWS, model
from toy import TEXTS, texts_file, tokenizer

from seap.activations.calibration import calibrate
from seap.activations.moments import Moments
from seap.errors import UserError
from seap.evidence import agreement, analyze
from seap.evidence.agreement import (
    MaskTable,
    Measured,
    expected_jaccard,
    halves,
    jaccard,
    ladder,
    masks_of_spans,
    measure,
)
from seap.evidence.commands import analyze_tasks
from seap.models.arch import describe
from seap.models.axes import CHANNELS, KV_GROUPS, Axis
from seap.pruning.prune import make_masks
from seap.selection.options import Pruning
from seap.text.corpus import Corpus, build_corpus
from seap.text.options import Calibration

OPTIONS = Calibration(num_texts=12, seq_len=10, batch_tokens=40)
TWO = {"first": TEXTS[:20], "second": TEXTS[20:]}
UNTIMED = {"seconds"}


def dense(name: str = "llama") -> Any:
    """Wide enough that half of it can go with 32 channels left in each layer."""
    return model(name, **{"n_inner" if name == "gpt2" else "intermediate_size": 96})


def corpus(num_texts: int = 12) -> Corpus:
    return build_corpus("toy", TEXTS, tokenizer(), replace(OPTIONS, num_texts=num_texts), source="test")


def analyzed(tasks: Any = None, name: str = "llama", **options: Any) -> dict[str, Any]:
    settings = {"calibration": OPTIONS, "embedding": "PCA", "progress": False} | options
    return analyze.analyze(dense(name), tokenizer(), tasks or TWO, **settings)


def bits(text: str) -> torch.Tensor:
    return torch.tensor([letter == "1" for letter in text])


# Overlap


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("1100", "1100", 1), ("1100", "0011", 0), ("1110", "0111", 2 / 4), ("1000", "1111", 1 / 4), ("0000", "0000", 1)],
)
def test_jaccard_of_known_masks(first: str, second: str, expected: float) -> None:
    assert jaccard(bits(first), bits(second)) == jaccard(bits(second), bits(first)) == expected


def test_chance_by_hand() -> None:
    # 2 and 2 of 4: one common unit in 4 of 6 cases (1/3), two in 1 of 6 (1)
    assert expected_jaccard(4, 2, 2) == pytest.approx(4 / 6 / 3 + 1 / 6)
    assert expected_jaccard(7, 7, 7) == 1
    assert expected_jaccard(7, 7, 3) == pytest.approx(3 / 7)
    assert expected_jaccard(11008, 5504, 5504) == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.parametrize(("units", "first", "second"), [(8, 3, 5), (40, 20, 20), (40, 35, 10), (5, 1, 1)])
def test_chance_is_that_of_a_simulation(units: int, first: int, second: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(20_000, units, generator=generator).argsort(1) < first
    fixed = torch.arange(units) < second
    shared, either = (draws & fixed).sum(1), (draws | fixed).sum(1)
    assert expected_jaccard(units, first, second) == pytest.approx(float((shared / either).mean()), abs=0.01)


def table_of(**masks: str) -> MaskTable:
    """Masks of the tiny llama by hand: 4 KV groups as given in every layer, all 96 channels but the last are kept."""
    arch = describe(dense())
    almost = torch.arange(96) < 95
    parts = {task: Measured(replace(corpus(2), name=task), {}) for task in masks}
    made = {
        (task, 0.5, (0, 2)): {axis.key: bits(text) if axis.name == KV_GROUPS else almost for axis in arch.axes}
        for task, text in masks.items()
    }
    return MaskTable(arch, parts, (0.5,), made)


def test_overlap_between_tasks_by_hand() -> None:
    groups, channels = agreement.overlaps(table_of(a="1100", b="0110", c="1100"))
    assert (groups["axis"], channels["axis"]) == (KV_GROUPS, CHANNELS)
    third = pytest.approx(1 / 3)
    assert groups["jaccard"] == [[1, third, 1], [third, 1, third], [1, third, 1]]
    assert groups["per_layer"] == [pytest.approx((1 / 3 + 1 + 1 / 3) / 3)] * 3
    assert groups["expected"] == pytest.approx(expected_jaccard(4, 2, 2))
    assert channels["jaccard"] == [[1, 1, 1]] * 3
    assert channels["expected"] == pytest.approx(expected_jaccard(96, 95, 95))
    assert channels["expected_per_layer"] == [channels["expected"]] * 3


def test_shared_parameters_count_an_axis_by_its_size() -> None:
    table = table_of(a="1100", b="0110")
    first, second = table.full("a", 0.5), table.full("b", 0.5)
    group, channel = table.arch.axes[0].unit_params, table.arch.axes[1].unit_params
    expected = (1 * group + 95 * channel) / (3 * group + 95 * channel)
    assert agreement.shared_params(table.arch.axes, first, second) == pytest.approx(expected)
    assert agreement.shared_params(table.arch.axes, first, first) == 1


# Spans of the text


def test_rungs_and_halves() -> None:
    assert [ladder(n) for n in (1, 2, 3, 8, 9)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 9]]
    assert [halves(n) for n in (2, 3, 8)] == [((0, 1), (1, 2)), ((0, 1), (1, 2)), ((0, 4), (4, 8))]


@pytest.mark.parametrize("num_texts", [2, 3, 7, 8, 12])
def test_every_span_is_measured_in_one_pass(num_texts: int) -> None:
    tiny, data = dense(), corpus(num_texts)
    found = measure(tiny, {"toy": data}, OPTIONS, progress=False)["toy"]
    assert sum(next(iter(part.values())).count for part in found.parts.values()) == data.num_tokens
    for start, end in found.spans:
        rows = replace(data, rows=data.rows[start:end])
        assert found.num_tokens((start, end)) == rows.num_tokens
        expected = calibrate(tiny, rows, OPTIONS, progress=False)
        for key, moments in found.statistics((start, end)).items():
            assert moments.count == rows.num_tokens
            torch.testing.assert_close(moments.mean, expected[key].mean, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(moments.m2, expected[key].m2, atol=1e-5, rtol=1e-4)


def test_equal_halves_have_one_mask() -> None:
    tiny, half = dense(), corpus(6)
    doubled = replace(half, rows=half.rows * 2)
    measured = measure(tiny, {"toy": doubled}, OPTIONS, progress=False)
    found = agreement.stabilities(masks_of_spans(tiny, measured, Pruning(method="seap-paper"), [0.4], progress=False))
    assert [entry["axis"] for entry in found] == [KV_GROUPS, CHANNELS]
    for entry in found:
        assert entry["jaccard"] == entry["same_fraction"] == 1 > entry["expected"]
        assert (entry["num_texts"], entry["num_tokens"]) == (6, [half.num_tokens] * 2)


def test_stability_by_hand() -> None:
    table = table_of(a="1100")
    spans = table.measured["a"].spans
    first, second = table_of(a="1100").full("a", 0.5), table_of(a="1010").full("a", 0.5)
    by_span = {("a", 0.5, span): first if span == (0, 1) else second for span in spans}
    groups, channels = agreement.stabilities(replace(table, masks=by_span))
    assert (groups["jaccard"], groups["same_fraction"]) == (pytest.approx(1 / 3), 0.5)
    assert (channels["jaccard"], channels["same_fraction"]) == (1, 1)


def test_the_last_rung_is_the_mask_of_all_text() -> None:
    tiny, data = dense(), corpus()
    pruning = Pruning(sparsity=0.5)
    table = masks_of_spans(
        tiny, measure(tiny, {"toy": data}, OPTIONS, progress=False), pruning, [pruning.sparsity], progress=False
    )
    expected, _ = make_masks(tiny, {"toy": calibrate(tiny, data, OPTIONS, progress=False)}, pruning)
    assert all(torch.equal(mask, expected[key]) for key, mask in table.full("toy", 0.5).items())
    rungs = agreement.enough(table)
    assert [rung["num_texts"] for rung in rungs] == [1, 2, 4, 8, 12]
    assert [rung["num_tokens"] for rung in rungs] == [sum(map(len, data.rows[:n])) for n in (1, 2, 4, 8, 12)]
    assert rungs[-1]["jaccard"] == 1 and rungs[-1]["by_axis"] == {KV_GROUPS: 1, CHANNELS: 1}
    assert 0 < rungs[0]["jaccard"] < 1


# Hidden states


@pytest.mark.parametrize("name", sorted(ROWS))
def test_mean_states_are_those_without_padding(name: str) -> None:
    tiny, rows = model(name).train(), corpus().rows
    found = analyze.mean_states(tiny, rows, batch_tokens=35)
    assert tiny.training
    tiny.eval()
    assert found.shape == (12, tiny.config.num_hidden_layers + 1, tiny.config.hidden_size)
    assert len({len(row) for row in rows}) > 3
    for row, means in zip(rows, found, strict=True):
        with torch.no_grad():
            states = tiny.base_model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        expected = torch.stack([layer.reshape(-1, len(row), layer.shape[-1]).mean((0, 1)) for layer in states])
        torch.testing.assert_close(means, expected, atol=1e-4, rtol=1e-4)


def clouds(distance: float) -> tuple[torch.Tensor, list[str]]:
    """Two tasks of 20 texts in 8 dimensions, each around its own middle: (40, 1, 8)."""
    noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    middles = torch.cat([torch.zeros(20, 8), torch.full((20, 8), distance)])
    return (middles + noise)[:, None], ["a"] * 20 + ["b"] * 20


def test_silhouettes_tell_distance() -> None:
    (near, labels), (far, _) = clouds(0), clouds(100)
    low, high = analyze.silhouettes(torch.cat([near, far], 1), labels)
    assert abs(low) < 0.05
    assert high > 0.95


def test_one_large_dimension_does_not_decide() -> None:
    states, labels = clouds(10)
    states[:, :, 0] = 1e4 * torch.randn(40, 1, generator=torch.Generator().manual_seed(1))
    assert analyze.silhouettes(states, labels)[0] > 0.5


def test_a_constant_dimension_counts_for_nothing() -> None:
    states, labels = clouds(10)
    more = torch.cat([states, torch.full((40, 1, 3), 7.0)], 2)
    assert analyze.silhouettes(more, labels) == pytest.approx(analyze.silhouettes(states, labels))


@pytest.mark.parametrize("kind", sorted(analyze.EMBEDDINGS))
@pytest.mark.parametrize("num_points", [4, 40])
def test_maps_are_seeded_and_keep_far_tasks_apart(kind: str, num_points: int) -> None:
    states = clouds(100)[0][:, 0][20 - num_points // 2 : 20 + num_points // 2]
    points = torch.tensor(analyze.embed(states, kind, seed=3))
    assert points.shape == (num_points, 2)
    assert points.tolist() == torch.tensor(analyze.embed(states, kind, seed=3)).tolist()
    if num_points > 4:
        first, second = points.split(20)
        spread = max(torch.pdist(first).max(), torch.pdist(second).max())
        assert torch.cdist(first, second).min() > spread / 2


@pytest.mark.parametrize("kind", sorted(analyze.EMBEDDINGS))
def test_a_map_of_equal_states_is_one_point(kind: str) -> None:
    assert analyze.embed(torch.ones(6, 5), kind) == [(0, 0)] * 6


# Activation maps


def channels_axis(units: int, unit_inputs: int = 1) -> Axis:
    return Axis(layer=0, name="any", units=units, unit_inputs=unit_inputs, unit_params=1, slices=())


def test_activation_map_by_hand() -> None:
    rows = torch.tensor([[1.0, 0, 3, 0], [-1.0, 0, 3, 0]])  # two KV groups of two inputs: mean squares 1, 0 · 9, 0
    rms = [0.5**0.5, 4.5**0.5]  # mean √2, so 0.5 and 1.5
    assert rms[1] / rms[0] == pytest.approx(3)
    assert analyze.binned(channels_axis(2, 2), Moments.of(rows)) == [0.5, 1.5]
    assert analyze.binned(channels_axis(4), Moments.of(torch.zeros(3, 4))) == [0] * 4


def test_many_channels_share_bins_in_order() -> None:
    rows = torch.arange(130.0)[None]
    values = analyze.binned(channels_axis(130), Moments.of(rows))
    assert len(values) == analyze.MAX_BINS
    assert values == sorted(values)
    assert sum(values) / len(values) == pytest.approx(1, abs=1e-3)
    # the first bin holds channels 0, 1 and 2, the last 128 and 129
    assert values[-1] / values[0] == pytest.approx(((128**2 + 129**2) / 2) ** 0.5 / (5 / 3) ** 0.5, rel=0.01)


# The whole


def test_the_result_says_everything_and_is_json() -> None:
    found = analyzed(num_states=5, embedding="t-SNE", sparsities=(0.2, 0.5, 0.2))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["kind"], found["family"], found["tasks"]) == ("analyze", "llama", ["first", "second"])
    assert len(found["silhouette"]) == 4
    assert found["silhouette"][found["map"]["layer"]] == max(found["silhouette"])
    assert [point["task"] for point in found["map"]["points"]] == ["first"] * 5 + ["second"] * 5
    shapes = {m["axis"]: torch.tensor(m["values"]).shape for m in found["activation"]}
    assert shapes == {KV_GROUPS: (2, 3, 4), CHANNELS: (2, 3, 64)}
    cases = {(entry["axis"], entry["sparsity"]) for entry in found["overlap"]}
    assert cases == {(axis, sparsity) for axis in (KV_GROUPS, CHANNELS) for sparsity in (0.2, 0.5)}
    for entry in found["overlap"]:
        assert len(entry["per_layer"]) == 3
        assert entry["jaccard"][0][1] == entry["jaccard"][1][0] == pytest.approx(sum(entry["per_layer"]) / 3)
    assert len(found["stability"]) == 8 and len(found["enough"]) == 2 * 2 * 5
    assert all(abs(entry["realised"] - entry["sparsity"]) < 0.005 for entry in found["realised"])
    assert found["num_texts"] == {"first": 12, "second": 12}
    assert found["data_hash"]["first"] != found["data_hash"]["second"]
    assert {"commit", "versions", "machine", "options", "command", "seconds"} <= found.keys()


@pytest.mark.parametrize("embedding", sorted(analyze.EMBEDDINGS))
def test_two_runs_give_one_result(embedding: str) -> None:
    first, second = (analyzed(embedding=embedding) for _ in range(2))
    assert {k: v for k, v in first.items() if k not in UNTIMED} == {k: v for k, v in second.items() if k not in UNTIMED}


def test_one_text_in_two_tasks_can_not_be_told_apart() -> None:
    found = analyzed({"one": TEXTS[:12], "other": TEXTS[:12]})
    assert all(abs(value) < 0.1 for value in found["silhouette"])
    assert all(entry["jaccard"] == [[1, 1], [1, 1]] for entry in found["overlap"])


def test_where_heads_can_not_be_cut_channels_are_looked_at() -> None:
    found = analyzed(name="gpt2", sparsities=[0.2])
    assert {entry["axis"] for key in ("activation", "overlap", "stability") for entry in found[key]} == {CHANNELS}
    assert any("only MLP channels" in note for note in found["notes"])


@pytest.mark.parametrize("method", ["flap", "wanda-sp", "seap-gen"])
def test_any_method_of_activations_will_do(method: str) -> None:
    assert analyzed(method=method)["options"]["method"] == method


def test_few_rows_are_enough() -> None:
    found = analyzed(calibration=replace(OPTIONS, num_texts=2), embedding="t-SNE")
    assert [entry["num_texts"] for entry in found["enough"][:2]] == [1, 2]
    assert all(entry["num_texts"] == 1 for entry in found["stability"])


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ({"only": TEXTS}, {}, "got 1, name two or more"),
        ("only=some/path", {}, "got 1, name two or more"),
        ({"first": TEXTS, "second": TEXTS[:1]}, {}, "task second: got 1 text .* at least 2"),
        (TWO, {"calibration": replace(OPTIONS, num_texts=1)}, "task first: got 1 text"),
        (TWO, {"method": "magnitude"}, "magnitude looks at no activations"),
        (TWO, {"method": "sep"}, "did you mean 'seap'"),
        (TWO, {"num_states": 1}, "--num-states 1"),
        (TWO, {"embedding": "tsne"}, "unknown embedding 'tsne'"),
        (TWO, {"sparsities": ()}, "no sparsity"),
        (TWO, {"sparsities": (0.2, 0.9)}, "sparsity 0.9 can't be met"),
        (TWO, {"sparsities": (1.5,)}, "--sparsity 1.5"),
    ],
)
def test_what_can_not_be_compared_is_refused_first(
    tasks: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("text was run through the model")

    monkeypatch.setattr(analyze, "measure", too_late)
    with pytest.raises(UserError, match=message):
        analyzed(tasks, **options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"scikit-learn.*seap\[eval\]"):
        analyzed()


def test_what_is_wrong_is_said_before_the_model_loads(tmp_path: Path) -> None:
    plain = texts_file(tmp_path / "plain.txt")
    (tmp_path / "one").mkdir()
    texts_file(tmp_path / "one" / "train.txt", ["w3 w4"])
    texts_file(tmp_path / "one" / "test.txt", ["w3 w4", "w5 w6"])
    cases = [
        ([f"plain={plain}"], "got 1, name two or more"),
        ([f"plain={plain}", f"one={tmp_path / 'one'}"], "its training part has one item"),
        ([f"plain={plain}", "nope"], "unknown task 'nope'"),
    ]
    for tasks, message in cases:
        with pytest.raises(UserError, match=message):
            analyze_tasks("no/model", tasks, tmp_path / "out.json", Calibration())
