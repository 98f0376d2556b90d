"""The task runtime: every task's outputs are those of its saved pruned checkpoint, from one copy of the weights."""

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import greedy, logits, pruned, random_masks, random_repairs
from tiny import EVERY, ids, model
from toy import TEXTS, tokenizer

import seap
from seap.errors import UserError
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.serving.networks.network import Network, load_network, network_between, network_of, save_network
from seap.serving.networks.order import slices_of, unit_order

NAMES = sorted(EVERY)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("min_slice_bytes", "min_prepacked"), [(1 << 20, 1 << 20), (0, 1 << 20), (1 << 20, 0)])
def test_a_task_is_its_pruned_checkpoint(
    name: str, min_slice_bytes: int, min_prepacked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and greedy text of each task, in turn and back, equal those of the model that surgery makes."""
    monkeypatch.setattr("seap.models.prepack.MIN_BYTES", min_prepacked)
    net = model(name)
    plain, mended = random_masks(net, 1), random_masks(net, 2)
    repairs = random_repairs(net, mended, 3)
    expected = {"dense": copy.deepcopy(net), "plain": pruned(net, plain), "mended": pruned(net, mended, repairs)}
    networks = {"plain": plain, "mended": mended}
    runtime = seap.TaskRuntime(net, networks, repairs={"mended": repairs}, min_slice_bytes=min_slice_bytes)
    given = ids()
    for task in ("plain", "mended", "dense", "mended", "plain", "dense"):
        with runtime.task(task) as current:
            assert torch.allclose(logits(current, given), logits(expected[task], given), atol=2e-5), task
            assert torch.equal(greedy(current, given), greedy(expected[task], given)), task
    assert runtime.current == "dense"


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "qwen2_moe", "gpt_oss"])
def test_a_saved_checkpoint_says_its_network(name: str, tmp_path: Path) -> None:
    """Pruned, saved, loaded, compared with the dense model, packed into a file, read and run: the same outputs."""
    net = model(name)
    masks = random_masks(net, 4)
    made = pruned(net, masks, random_repairs(net, masks, 5))
    made.save_pretrained(tmp_path / "pruned")
    loaded = type(net).from_pretrained(tmp_path / "pruned")
    save_network(tmp_path / "one.safetensors", network_between(net, loaded, masks), {"task": "one"})
    network = load_network(tmp_path / "one.safetensors")
    assert network.about["task"] == "one"
    with pytest.raises(UserError, match="isn't what its mask keeps"):
        network_between(model(name, seed=9), loaded, masks)
    with seap.TaskRuntime(net, {"one": network}).task("one") as current:
        assert torch.allclose(logits(current, ids()), logits(made, ids()), atol=2e-5)


def test_a_network_is_the_one_that_was_loaded_whatever_its_file_becomes(tmp_path: Path) -> None:
    """Another that takes the file's place isn't read, a file that is written over is refused."""
    net, path = model("llama"), tmp_path / "one.safetensors"
    made = []
    for seed in (4, 6):
        masks = random_masks(net, seed)
        made.append((masks, pruned(net, masks, random_repairs(net, masks, seed + 1))))
    first, second = (network_between(net, one, masks) for masks, one in made)
    save_network(path, first, {"task": "one"})
    network = load_network(path)
    save_network(path, second, {"task": "two"})
    runtime = seap.TaskRuntime(copy.deepcopy(net), {"one": network}, cache_bytes=0)
    for _ in range(2):  # the second time after it was given up
        with runtime.task("one") as current:
            assert torch.allclose(logits(current, ids()), logits(made[0][1], ids()), atol=2e-5)
        runtime._evict_(0)
    path.unlink()
    with runtime.task("one") as current:
        assert torch.allclose(logits(current, ids()), logits(made[0][1], ids()), atol=2e-5)

    save_network(path, first, {"task": "one"})
    network = load_network(path)
    save_network(tmp_path / "other.safetensors", second, {"task": "one"})
    path.write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"one.safetensors was written over .* restart"):
        seap.TaskRuntime(copy.deepcopy(net), {"one": network}).switch_("one")


def test_pruning_by_the_default_method_goes_into_a_network() -> None:
    net = model("llama", intermediate_size=80)
    made = copy.deepcopy(net)
    report = seap.prune(made, tokenizer(), task={"words": TEXTS}, sparsity=0.4, progress=False, search_evaluations=2)
    runtime = seap.TaskRuntime(net, {"words": network_between(net, made, report.masks)})
    with runtime.task("words") as current:
        assert torch.allclose(logits(current, ids()), logits(made, ids()), atol=2e-5)
    assert runtime.weights_at_work("words") == pytest.approx(1 - report.realised_sparsity)


def test_rows_of_different_tasks() -> None:
    net = model("llama")
    masks = {"a": random_masks(net, 1), "b": random_masks(net, 2)}
    alone = {name: pruned(net, own) for name, own in masks.items()} | {"dense": copy.deepcopy(net)}
    runtime = seap.TaskRuntime(net, masks)
    given, tasks = ids(rows=4), ["b", "a", "dense", "b"]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    rows = runtime.generate(given, tasks, attention_mask=torch.ones_like(given), **options)
    for row, task, ids_of_row in zip(rows, tasks, given, strict=True):
        assert torch.equal(row, alone[task].generate(ids_of_row[None], pad_token_id=0, **options)[0])
    with pytest.raises(UserError, match="2 tasks for 4 rows"):
        runtime.generate(given, ["a", "b"])


def test_a_cache_has_the_shapes_of_its_task() -> None:
    net = model("llama")
    masks = random_masks(net, 1)
    runtime = seap.TaskRuntime(net, {"a": masks})
    with runtime.task("a") as current:
        cache = current.generate(ids(), max_new_tokens=2, return_dict_in_generate=True).past_key_values
    groups = [int(masks[f"layers.{layer}.kv_groups"].sum()) for layer in range(3)]
    assert [layer.keys.shape[1] for layer in cache.layers] == groups and groups != [4, 4, 4]


def test_two_tasks_share_every_weight() -> None:
    """Without repairs two networks are one slice each, so both are views of the dense weights and cost nothing."""
    net = model("llama")
    runtime = seap.TaskRuntime(net, {"a": random_masks(net, 1), "b": random_masks(net, 2)})
    held = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    assert runtime.bytes == {"a": 0, "b": 0}
    for task in ("a", "b"):
        with runtime.task(task) as current:
            weights = [linear.weight for linear in current.modules() if isinstance(linear, torch.nn.Linear)]
            assert {weight.untyped_storage().data_ptr() for weight in weights} <= held
            assert any(weight.numel() < 24 * 40 for weight in weights)


def test_packed_copies_stay_within_their_limit() -> None:
    net = model("llama")
    masks = {str(seed): random_masks(net, seed) for seed in range(6)}
    expected = {name: logits(pruned(net, own), ids()) for name, own in masks.items()}
    free = seap.TaskRuntime(copy.deepcopy(net), masks)
    limit = 2 * max(free.bytes.values())
    runtime = seap.TaskRuntime(net, masks, cache_bytes=limit)
    for name in [*masks, *reversed(masks), "0", "1", "0"]:
        with runtime.task(name) as current:
            assert torch.allclose(logits(current, ids()), expected[name], atol=2e-5)
        held = sum(runtime.resident.values())
        assert 0 < held <= limit and name in runtime.resident
        owned = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in _packed(runtime)}
        assert sum(owned.values()) == held
    assert [*runtime.resident][-2:] == ["1", "0"]
    tight = seap.TaskRuntime(copy.deepcopy(free.model), {"0": _reordered(masks["0"], free), "dull": masks["1"]})
    tight.cache_bytes = 1
    with tight.task("0"):
        assert [*tight.resident] == ["0"]


def _packed(runtime: seap.TaskRuntime) -> list[torch.Tensor]:
    """The tensors of resident networks that aren't views of the dense weights."""
    dense = {parameter.untyped_storage().data_ptr() for parameter in runtime.model.parameters()}
    found = [value for s in runtime._resident.values() for _, _, value in s.values() if torch.is_tensor(value)]
    return [value for value in found if value.untyped_storage().data_ptr() not in dense]


def _reordered(masks: Masks, runtime: seap.TaskRuntime) -> Masks:
    return {key: mask[runtime.order[key]] for key, mask in masks.items()}


def test_the_order_of_units() -> None:
    assert slices_of(torch.tensor([4, 5, 6, 9])) == [(4, 7), (9, 10)] and slices_of(torch.tensor([])) == []
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        masks = [torch.rand(50, generator=generator) < 0.5 for _ in range(2)]
        order = unit_order(masks)
        assert sorted(order.tolist()) == list(range(50))
        assert all(len(slices_of(mask[order].nonzero().flatten())) == 1 for mask in masks)
    nested = [torch.arange(50) % 5 < k for k in (1, 2, 3, 4)]
    assert all(len(slices_of(mask[unit_order(nested)].nonzero().flatten())) == 1 for mask in nested)
    many = [torch.rand(200, generator=generator) < 0.5 for _ in range(4)]
    slices = sum(len(slices_of(mask[unit_order(many)].nonzero().flatten())) for mask in many)
    assert slices <= 16  # 16 blocks on a Gray code: 8 + 4 + 2 + 1 turns on, and one more at the end
    assert unit_order([torch.ones(7).bool()]).tolist() == list(range(7))


def test_threads_wait_for_each_other() -> None:
    net = model("llama")
    masks = {str(seed): random_masks(net, seed) for seed in range(3)}
    expected = {name: logits(pruned(net, own), ids()) for name, own in masks.items()}
    runtime, wrong = seap.TaskRuntime(net, masks), []

    def work(name: str) -> None:
        for _ in range(20):
            with runtime.task(name) as current:
                if not torch.allclose(logits(current, ids()), expected[name], atol=2e-5):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in masks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_refused() -> None:
    net = model("llama")
    masks = random_masks(net, 1)
    with pytest.raises(UserError, match="no task can be called dense"):
        seap.TaskRuntime(net, {"dense": masks})
    with pytest.raises(UserError, match="doesn't fit"):
        seap.TaskRuntime(net, {"a": random_masks(model("llama-mha"), 1)})
    with pytest.raises(UserError, match="pruned already"):
        seap.TaskRuntime(pruned(net, masks), {"a": masks})
    runtime = seap.TaskRuntime(net, {"maths": masks})
    with pytest.raises(UserError, match="did you mean 'maths'"), runtime.task("math"):
        pass


def test_in_memory_networks_round_as_surgery_does() -> None:
    net = model("llama", dtype=torch.bfloat16)
    masks = random_masks(net, 2)
    repairs = random_repairs(net, masks, 3)
    network, made = network_of(describe(net), masks, repairs), pruned(net, masks, repairs)
    again = network_between(net, made, masks)
    assert isinstance(network, Network) and network.biases.keys() == again.biases.keys()
    assert all(torch.equal(network.biases[key], again.biases[key]) for key in network.biases)
    assert all(torch.equal(network.weights[key], again.weights[key]) for key in network.weights)
