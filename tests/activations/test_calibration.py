"""Calibration equals the activations themselves, whatever the batching and padding; bad activations are named."""

import gc
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from normed_rows import check_normed
from tiny import ROWS, ids, model
from toy import TEXTS, WORDS, tokenizer

from seap.activations import calibration
from seap.activations.calibration import calibrate, check_same_model, identity, num_blocks
from seap.activations.layerwise import Walk
from seap.activations.stats import merge
from seap.errors import UserError
from seap.models.arch import describe
from seap.text.corpus import Corpus, batches, build_corpus
from seap.text.options import Calibration

OPTIONS = Calibration(num_texts=12, seq_len=10)


def corpus(options: Calibration = OPTIONS) -> Corpus:
    return build_corpus("toy", TEXTS, tokenizer(), options, source="test")


def recorded_one_by_one(dense: Any, rows: Any) -> dict[str, torch.Tensor]:
    """Inputs of every consumer, one unpadded row at a time: (N, C) per axis."""
    arch = describe(dense)
    found: dict[str, list[torch.Tensor]] = {axis.key: [] for axis in arch.axes}
    handles = [
        arch.consumer(axis).register_forward_pre_hook(
            lambda _, inputs, key=axis.key: found[key].append(inputs[0].reshape(-1, inputs[0].shape[-1]).double())
        )
        for axis in arch.axes
    ]
    with torch.no_grad():
        for row in rows:
            dense(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return {key: torch.cat(parts) for key, parts in found.items()}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_statistics_are_those_of_the_activations(name: str) -> None:
    dense, data = model(name), corpus()
    expected = recorded_one_by_one(dense, data.rows)
    statistics = calibrate(dense, data, replace(OPTIONS, batch_tokens=35, second_moments=True), progress=False)
    arch = describe(dense)
    normed = {axis.key: axis for axis in arch.axes if axis.normed_key}
    assert statistics.keys() == expected.keys() | {axis.normed_key for axis in normed.values()}
    assert statistics.has_second_moments
    for key, activations in expected.items():
        found = statistics[key]
        assert found.count == data.num_tokens == len(activations)
        torch.testing.assert_close(found.mean, activations.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.variance, activations.var(0), atol=1e-5, rtol=1e-3)
        if key in normed:
            assert found.co is None
            check_normed(statistics[normed[key].normed_key], activations, arch.consumer(normed[key]))
            continue
        assert found.co is not None
        torch.testing.assert_close(found.co / (found.count - 1), torch.cov(activations.t()), atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_batching_and_padding_change_nothing(batch_tokens: int) -> None:
    dense, data = model("llama"), corpus()
    one = calibrate(dense, data, replace(OPTIONS, batch_tokens=1), progress=False)
    other = calibrate(dense, data, replace(OPTIONS, batch_tokens=batch_tokens), progress=False)
    for key in one:
        assert one[key].count == other[key].count
        torch.testing.assert_close(one[key].mean, other[key].mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(one[key].m2, other[key].m2, atol=1e-4, rtol=1e-5)


def test_parts_add_up_to_the_whole() -> None:
    dense, data = model("llama", dtype=torch.bfloat16), corpus()
    whole = calibrate(dense, data, replace(OPTIONS, batch_tokens=1), progress=False)
    halves = [replace(data, rows=part) for part in (data.rows[:5], data.rows[5:])]
    summed = merge(calibrate(dense, half, replace(OPTIONS, batch_tokens=1), progress=False) for half in halves)
    for key in whole:
        assert whole[key].count == summed[key].count
        torch.testing.assert_close(whole[key].mean, summed[key].mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(whole[key].m2, summed[key].m2, rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    dense = model("llama").train()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    calibrate(dense, corpus(), OPTIONS, progress=False)
    assert dense.training and all(not module._forward_pre_hooks for module in dense.modules())
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_name_the_layer(bad: float) -> None:
    dense = model("llama")
    with torch.no_grad():
        dense.model.layers[1].mlp.up_proj.weight[3, 0] = bad
    with pytest.raises(UserError, match=r"NaN or infinite activations at the input of layer 1 mlp\.down_proj"):
        calibrate(dense, corpus(), OPTIONS, progress=False)


def test_corpora_are_seeded_limited_and_hashed() -> None:
    assert corpus() == corpus()
    assert corpus().data_hash != corpus(replace(OPTIONS, seed=1)).data_hash
    assert len(corpus().rows) == 12 and max(len(row) for row in corpus().rows) <= 10
    limited = corpus(replace(OPTIONS, max_tokens=31))
    assert limited.num_tokens in (30, 31) and limited.rows[:2] == corpus().rows[:2]


def test_packing_joins_texts_into_full_rows() -> None:
    packed, loose = corpus(replace(OPTIONS, pack=True)), corpus(replace(OPTIONS, seq_len=64))
    assert all(len(row) == 10 for row in packed.rows[:-1]) and 2 <= len(packed.rows[-1]) <= 10
    joined = [token for row in loose.rows for token in (*row, 2)]  # 2 ends a text
    assert [token for row in packed.rows for token in row] == joined[: packed.num_tokens]
    assert packed.num_tokens >= len(joined) - 1


def test_blank_and_one_token_texts_are_left_out_and_counted() -> None:
    """Trap: the published WikiText2 calibration counted blank lines as texts."""
    texts = ["", "  ", WORDS[0], *TEXTS[:3]]
    data = build_corpus("toy", texts, tokenizer(), OPTIONS, source="test")
    assert (len(data.rows), data.skipped) == (3, 3)
    with pytest.raises(UserError, match="task toy: none of 3 texts has two tokens or more"):
        build_corpus("toy", texts[:3], tokenizer(), OPTIONS, source="test")


def test_batches_hold_every_row_once_within_the_limit() -> None:
    rows = corpus().rows
    found = list(batches(rows, batch_tokens=24))
    assert sorted(tuple(i[m].tolist()) for b in found for i, m in zip(b.ids, b.mask, strict=True)) == sorted(rows)
    assert all(batch.ids.numel() <= 24 for batch in found)


def test_a_model_is_known_by_its_weights_not_its_dtype() -> None:
    dense, other = model("llama"), model("llama", seed=1)
    own = identity(dense) | {"model": "first"}
    for dtype in (torch.bfloat16, torch.float16):
        check_same_model([Path("a")], [own], model("llama").to(dtype))
    touched = model("llama")
    with torch.no_grad():
        touched.model.layers[1].self_attn.q_proj.weight.neg_()  # such as a merged adapter on q and v alone
    for stranger in (other, touched):
        with pytest.raises(UserError, match=r"a\.safetensors was made with another model \(first\)"):
            check_same_model([Path("a.safetensors")], [own], stranger)


@pytest.mark.parametrize("pack", [True, False])
def test_a_token_limit_cuts_the_same_text_short(pack: bool) -> None:
    """However soon reading stops: the corpus is the beginning of the one without a limit."""
    options = Calibration(pack=pack, seq_len=7)
    whole = [token for row in build_corpus("a", TEXTS, tokenizer(), options, source="-").rows for token in row]
    for limit in range(2, len(whole) + 9, 3):
        corpus = build_corpus("a", TEXTS, tokenizer(), replace(options, max_tokens=limit), source="-")
        assert [token for row in corpus.rows for token in row] == whole[: corpus.num_tokens]
        assert min(limit, len(whole)) - 1 <= corpus.num_tokens <= limit


def large_matrices() -> list[torch.Tensor]:
    """Co-moments that are alive."""
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
    return [o for o in tensors if o.dtype == torch.float64 and o.shape[-2:] == (40, 40) and o._base is None]


def test_large_matrices_lie_on_disk_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = model("llama", num_hidden_layers=5)
    data = Corpus("toy", tuple(tuple(row) for row in ids(12, 9).tolist()), "test")
    options = Calibration(second_moments=True, batch_tokens=40)
    inside = calibrate(dense, data, options, progress=False)
    monkeypatch.setattr(calibration, "IN_MEMORY_BYTES", 0)
    seen: list[int] = []
    run = Walk.run

    def counted(self: Any, layer: int, *rest: Any) -> Any:
        seen.append(len(large_matrices()))
        return run(self, layer, *rest)

    before = len(large_matrices())
    monkeypatch.setattr(Walk, "run", counted)
    outside = calibrate(dense, data, options, progress=False)
    assert max(seen) - before <= 2 and len(large_matrices()) == before  # the fit's and the held-out rows' of one layer
    for key, moments in inside.items():
        assert moments.co is not None and torch.equal(outside[key].co, moments.co)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(UserError, match=r"GB of disk in .*set TMPDIR"):
            calibrate(dense, data, options, progress=False)


def test_the_folder_goes_when_calibration_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibration, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dense = model("llama")
    with torch.no_grad():
        describe(dense).weight(1, "mlp.up_proj")[0, 0] = float("nan")
    data = Corpus("toy", tuple(tuple(row) for row in ids(12, 9).tolist()), "test")
    with pytest.raises(UserError, match="layer 1"):
        calibrate(dense, data, Calibration(second_moments=True), progress=False)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_blocks_keep_units_whole_and_to_their_size() -> None:
    arch = describe(model("llama"))  # 4 groups of 16 inputs, 40 channels
    groups, channels = arch.axes[:2]
    assert [num_blocks(groups, m) for m in ("full", "block:64", "block:63", "block:32", "block:1")] == [1, 1, 2, 2, 4]
    assert [num_blocks(channels, m) for m in ("full", "block:40", "block:39", "block:10", "block:9")] == [1, 1, 2, 4, 5]
    found = calibrate(
        model("llama"),
        Corpus("toy", tuple(tuple(row) for row in ids(12, 9).tolist()), "test"),
        Calibration(second_moments=True, moments="block:20"),
        progress=False,
    )
    assert {key: moments.num_blocks for key, moments in found.items()}["layers.0.channels"] == 2
