"""The default method layer by layer from the files: the same network as in memory, one layer of it there at a time."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from test_streaming import assert_same, pruned
from tiny import model
from toy import folder, tokenizer

from seap.models import loader, shelf
from seap.models.arch import describe
from seap.models.modes import evaluation
from seap.models.options import Streaming
from seap.models.residency import as_computed, streamed
from seap.models.shelf import Shelf, shelf_for
from seap.pruning import streaming
from seap.scoring import sensitivity
from seap.selection import damage, repairing

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi3", "gpt_neox", "opt", "gpt2")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_as_in_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: each batch goes through the same operations in the same order, and sums are added up as there."""
    words = tokenizer()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: words)  # not the family's own
    dense = folder(tmp_path / "dense", name)
    how: dict[str, Any] = {"sparsity": 0.3, "search_evaluations": 6, "batch_tokens": 64}
    one = pruned(dense, tmp_path / "one", **how)
    assert_same(one, pruned(dense, tmp_path / "other", Streaming(stream=True), **how))


@pytest.mark.parametrize("offload", [False, True])
def test_what_is_large_lies_on_disk_and_changes_nothing(
    offload: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "has_16_bit", lambda: False)
    monkeypatch.setattr(shelf.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    dense = folder(tmp_path / "dense")
    model(dtype=torch.bfloat16).save_pretrained(dense)
    one = pruned(dense, tmp_path / "one")
    monkeypatch.setattr(shelf, "LARGE", 0)
    used: list[Path] = []
    make = shelf.lasting
    monkeypatch.setattr(shelf, "lasting", lambda name, place: used.append(place) or make(name, place))
    plan = Streaming(stream=True, offload_dir=tmp_path / "states" if offload else None)
    assert_same(one, pruned(dense, tmp_path / "other", plan))
    place = tmp_path / ("states" if offload else "tmp")
    assert set(used) == {place} and len(used) >= 5  # F, its states, the trials' states, repairs, the refit's
    assert list(place.iterdir()) == []


def moved_of(dense: Any) -> Any:
    """What says which parts of a streamed model are ready: a layer's name, or a weight's beside the layers."""
    before = {name: value.data_ptr() for name, value in dense.named_parameters()}
    layers = describe(dense).family.layers

    def now() -> set[str]:
        moved = {name for name, value in dense.named_parameters() if value.data_ptr() != before[name]}
        depth = layers.count(".") + 2
        return {".".join(name.split(".")[:depth]) if name.startswith(f"{layers}.") else name for name in moved}

    return now


def test_one_layer_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, back and in a trial; the output layer never beside the embedding."""
    dense, _ = loader.load_streamed(str(folder(tmp_path / "dense")), tmp_path / "shards", dtype="bfloat16")
    arch, now, seen = describe(dense), moved_of(dense), []
    for layer in arch.layers:
        layer.register_forward_pre_hook(lambda *_: seen.append(now()))
    dense.lm_head.register_forward_pre_hook(lambda *_: seen.append(now()))
    rows = [tuple(range(3, 12)), tuple(range(20, 29)), tuple(range(40, 49))]
    with evaluation(dense):
        sensitivity.fisher(arch, rows, seed=0, batch_tokens=16, progress=False)
        judge = damage.Judge.on(arch, rows, batch_tokens=16)
        kept = torch.arange(arch.axes[1].num_inputs) % 2 == 0
        assert judge.divergence_with([arch.axes[1]], lambda _: (kept, None)) > 0
    alone = [{f"model.layers.{i}"} for i in range(3)]
    around = [{"model.embed_tokens.weight", "model.norm.weight"}, {"lm_head.weight", "model.norm.weight"}]
    assert {frozenset(part) for part in seen} == {frozenset(part) for part in (*alone, *around)}
    assert now() == set()


def test_in_memory_too_one_layer_is_cut_at_a_time() -> None:
    """Copies of all layers' linears would be half of a model."""
    dense = model("llama")
    arch, now, seen = describe(dense), moved_of(dense), []
    for layer in arch.layers:
        layer.register_forward_hook(lambda *_: seen.append(now()))
    cut = {axis: (torch.arange(axis.num_inputs) % 2 == 0, None) for axis in arch.axes if axis.name == "channels"}
    with evaluation(dense):
        judge = damage.Judge.on(arch, [tuple(range(3, 12))], batch_tokens=16)
        seen.clear()
        assert judge.divergence_with(list(cut), cut.__getitem__) > 0
    assert [part for part in seen if part] == [{f"model.layers.{i}"} for i in range(3)] and now() == set()


def test_a_trial_costs_what_it_costs_in_memory(tmp_path: Path) -> None:
    """KL of any cuts, to the bit."""
    name = str(folder(tmp_path / "dense", "gemma3_text"))
    rows = [tuple(range(3 + i, 12 + 2 * i)) for i in range(7)]
    found = []
    for dense in (loader.load(name)[0], loader.load_streamed(name, tmp_path / "shards")[0]):
        arch = describe(dense)
        with evaluation(dense):
            judge = damage.Judge.on(arch, rows, batch_tokens=20)
            cut = {axis: (torch.arange(axis.num_inputs) >= axis.unit_inputs, None) for axis in arch.axes[2:]}
            found.append([judge.divergence_with(list(cut)[start:], cut.__getitem__) for start in (0, 2, 4)])
    assert found[0] == found[1] and all(value > 0 for value in found[0][:2]) and found[0][2] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_only_the_latest_repairs_are_kept(stream: bool, tmp_path: Path) -> None:
    name = str(folder(tmp_path / "dense"))
    loaded = loader.load_streamed(name, tmp_path / "shards", dtype="float32") if stream else loader.load(name)
    arch = describe(loaded[0].float())
    made: list[tuple[str, int]] = []

    def found(axis: Any, width: int) -> Any:
        made.append((axis.key, width))
        weight = as_computed(arch.model, arch.weight(axis.layer, axis.consumer))[:, :width].double()
        return torch.arange(axis.num_inputs) < width, repairing.Repair(weight[:, 0], weight)

    to = repairing._remembered(arch, found)
    axis = arch.axes[1]
    for width in (9, 8, 9, 7, 6, 9, 8):
        keep, repair = to(axis, width)
        assert int(keep.sum()) == width and repair is not None and repair.weight is not None
        assert repair.weight.dtype == torch.float32 and repair.weight.shape[1] == width
    assert made == [(axis.key, width) for width in (9, 8, 7, 6, 9, 8)]  # two widths at a time


def test_a_shelf_keeps_tensors_in_files_that_go_with_it(tmp_path: Path) -> None:
    kept = Shelf(tmp_path)
    given = torch.randn(3, 4).bfloat16()
    first = kept.put("1.a", given)
    kept["10.a"], kept["empty"] = torch.ones(2), torch.empty(0)
    kept.rest("1.")
    assert torch.equal(first, given) and torch.equal(kept["1.a"], given) and first.data_ptr() != given.data_ptr()
    again = kept.put("1.a", 2 * given)
    assert again.data_ptr() == first.data_ptr() and torch.equal(first, 2 * given)
    assert kept.put("1.a", torch.arange(5)).tolist() == list(range(5))  # of another size: another file
    del kept["10.a"]
    assert list(kept) == ["1.a", "empty"] and len(list(tmp_path.iterdir())) == 1
    kept.close()
    assert not len(kept) and list(tmp_path.iterdir()) == []
    plain = Shelf()
    assert plain.put("a", given) is given and not plain.on_disk


def test_too_small_a_disk_is_said_before_anything_is_run(tmp_path: Path) -> None:
    dense, _ = loader.load_streamed(str(folder(tmp_path / "dense")), tmp_path / "s", offload_dir=tmp_path / "states")
    with pytest.raises(loader.UserError, match=r"hidden states need .* GB of disk in .*states.*--offload-dir"):
        shelf_for(dense, 1e18, "hidden states")
    with pytest.raises(loader.UserError, match=r"hidden states need .* set TMPDIR to a larger disk"):
        shelf_for(model("llama"), 1e18, "hidden states", on_host=True)
    assert not shelf_for(model("llama"), 1e18, "hidden states").on_disk  # a model in memory keeps its own there then
    assert not shelf_for(model("llama"), shelf.MUCH, "hidden states").on_disk


def test_a_disk_that_fills_up_ends_the_run_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with a signal at the next write to the map."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf.os, "posix_fallocate", full, raising=False)
    dense = folder(tmp_path / "dense")
    with pytest.raises(loader.UserError, match=r"No space left on device.*--offload-dir"):
        pruned(dense, tmp_path / "out", Streaming(stream=True, offload_dir=tmp_path / "states"))
    assert not (tmp_path / "out").exists() and list((tmp_path / "states").iterdir()) == []


def test_the_refit_is_streamed_with_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer is ready while it is refitted, and those before it are cut and written."""
    seen: list[tuple[int, bool]] = []
    advance = streaming.Streams.advance_

    def watched(self: streaming.Streams, layer: int) -> None:
        plan = streamed(self.arch.model)
        assert plan is not None
        written = [(plan.shards / f"layer-{i}.safetensors").is_file() for i in range(3)]
        seen.append((layer, written == [i < layer for i in range(3)]))
        assert {key.rpartition(".")[0] for key in self.repairs} <= {f"layers.{layer}"}
        advance(self, layer)

    monkeypatch.setattr(streaming.Streams, "advance_", watched)
    pruned(folder(tmp_path / "dense"), tmp_path / "out", Streaming(stream=True), search_evaluations=2)
    assert seen == [(0, True), (1, True), (2, True)]
