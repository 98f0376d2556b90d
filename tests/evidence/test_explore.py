"""`seap explore`: what is used is what is written, by arithmetic; the texts that use a part most; what is told of."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import EVERY, MOE, ids, model
from toy import TEXTS, folder, tokenizer
from transformers import AutoModelForCausalLM

from seap.errors import UserError
from seap.evidence.explore import Uses, explore, measure, snippet, telling
from seap.models.arch import Arch, describe
from seap.models.axes import CHANNELS, QUERY_HEADS
from seap.pruning.commands import prune_to_folder
from seap.text.corpus import Corpus
from seap.text.options import Calibration
from seap.text.rows import CountedRow

LONG = tuple(tuple(row) for row in ids(7, 11).tolist())
SHORT = tuple(tuple(row) for row in ids(5, 4, seed=2).tolist())
CORPORA = {"a": Corpus("a", LONG, "test"), "b": Corpus("b", SHORT, "test")}


def written(arch: Arch, layer: int, name: str, row: Sequence[int]) -> torch.Tensor:
    """Of one text, token by token, what each part makes the consumer write: its columns times its inputs, in full."""
    [axis] = [axis for axis in arch.layer_axes(layer) if axis.name == {QUERY_HEADS: "kv_groups"}.get(name, name)]
    read: list[torch.Tensor] = []
    handle = arch.consumer(axis).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        arch.model(torch.tensor([list(row)]))
    handle.remove()
    parts, weight = axis.units * axis.queries, arch.weight(layer, axis.consumer)
    inputs = read[0].reshape(len(row), parts, -1)
    each = [inputs[:, part] @ weight.reshape(len(weight), parts, -1)[:, part].t() for part in range(parts)]
    return torch.stack(each, 1).square().sum(2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi3", "opt"])
def test_use_is_the_share_of_what_is_written(name: str) -> None:
    arch = describe(model(name))
    for one in measure(arch, CORPORA, num_kept=3, batch_tokens=30, progress=False):
        energies = [written(arch, one.axis.layer, one.name, row) for row in (*LONG, *SHORT)]
        shares = [energy / energy.sum(1, keepdim=True) for energy in energies]
        by_hand = torch.stack([torch.cat(shares[:7]).mean(0), torch.cat(shares[7:]).mean(0)])
        torch.testing.assert_close(one.uses.mean, by_hand.double(), rtol=1e-3, atol=1e-5)
        means = torch.stack([share.mean(0) for share in shares])
        torch.testing.assert_close(one.uses.value, means.topk(3, dim=0).values, rtol=1e-3, atol=1e-5)
        for text, place, value in zip(one.uses.text.T, one.uses.place.T, one.uses.value.T, strict=True):
            part = next(i for i in range(means.shape[1]) if torch.equal(one.uses.value[:, i], value))
            assert torch.allclose(means[text, part], value, rtol=1e-3, atol=1e-5)
            peaks = [shares[t][:, part].max() for t in text.tolist()]
            found = [shares[t][p, part] for t, p in zip(text.tolist(), place.tolist(), strict=True)]
            torch.testing.assert_close(torch.stack(found), torch.stack(peaks), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", list(EVERY))
def test_every_family_is_seen_and_batches_change_nothing(name: str) -> None:
    arch = describe(model(name))
    small, large = (measure(arch, CORPORA, num_kept=4, batch_tokens=n, progress=False) for n in (12, 4096))
    assert len(small) == len(arch.axes)
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a.uses.mean, b.uses.mean, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(a.uses.value, b.uses.value, rtol=1e-3, atol=1e-5)
        assert torch.allclose(a.uses.mean.sum(1), torch.ones(2).double(), atol=1e-4), a.axis.key
        assert a.uses.tokens == [77, 20]
    kinds = {one.name for one in small}
    assert ("experts" in kinds) == (name in MOE)


def test_only_tokens_that_count_do() -> None:
    arch = describe(model())
    marked = tuple(CountedRow(row, [place >= 8 for place in range(11)]) for row in LONG)
    [found, *_] = measure(arch, {"a": Corpus("a", marked, "test")}, num_kept=2, batch_tokens=40, progress=False)
    shares = []
    for row in LONG:
        energy = written(arch, 0, QUERY_HEADS, row)[8:]
        shares.append(energy / energy.sum(1, keepdim=True))
    torch.testing.assert_close(found.uses.mean[0], torch.cat(shares).mean(0).double(), rtol=1e-3, atol=1e-5)
    assert found.uses.tokens == [21] and int(found.uses.place.min()) >= 8


def test_memory_is_that_of_the_texts_that_are_kept() -> None:
    uses, chance = Uses.nothing(6, num_tasks=1, num_kept=2), torch.Generator().manual_seed(0)
    means = torch.rand(40, 6, generator=chance)
    for start in range(0, 40, 8):
        texts = torch.arange(start, start + 8)
        shares = means[texts][:, None].expand(-1, 3, -1)
        uses.update_(0, texts, shares, torch.ones(8, 3, dtype=torch.bool))
        assert uses.value.shape == uses.text.shape == uses.place.shape == (2, 6)
    best = means.topk(2, dim=0)
    assert torch.allclose(uses.value, best.values) and torch.equal(uses.text, best.indices)


def test_half_of_what_is_told_is_used_most_and_half_tells_tasks_apart() -> None:
    mean = torch.tensor([[0.40, 0.30, 0.05, 0.15, 0.10, 0.0], [0.40, 0.31, 0.15, 0.04, 0.05, 0.05]])
    # used most: 0, 1; of the others the largest differences: 3 (0.11), 2 (0.10)
    assert telling(mean, 4) == [0, 3, 1, 2]  # the first task's, then the second's, each the largest first
    assert telling(mean[:1], 3) == [0, 1, 3]
    assert sorted(telling(mean, 99)) == list(range(6))


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8, 300 the beginning of a text."""

    bos_token_id = 300

    def decode(self, row: list[int], **_: Any) -> str:
        return b"".join(b"<s>" if token == 300 else bytes([token]) for token in row).decode(errors="replace")


def test_a_snippet_marks_the_token_and_leaves_characters_whole() -> None:
    row = [300, *"größer als klein, kleiner als groß".encode()]
    before, marked, behind = snippet(Bytes(), row, 2)
    assert (before, marked) == ("g", "r") and behind.endswith(" …")
    for place in range(1, len(row)):
        before, marked, behind = snippet(Bytes(), row, place)
        whole = f"{before}{marked}{behind}".replace("… ", "").replace(" …", "")
        assert whole.strip("�") in "größer als klein, kleiner als groß" and len(marked) == 1 and marked != "�"
    assert snippet(Bytes(), row, 0)[:2] == ["", "<s>"]


def test_the_result_has_every_task_and_layer(tmp_path: Any) -> None:
    tasks = {"one": TEXTS[:10], "two": TEXTS[10:]}
    found = explore(model(), tokenizer(), tasks, num_units=6, num_kept=2, progress=False)
    assert found["tasks"] == ["one", "two"] and found["num_texts"] == [10, 30]
    assert [each["parts"] for each in found["maps"]] == ["query_heads", "channels"]
    heads, channels = found["maps"]
    assert all(len(layer["parts"]) == 8 and layer["queries"] == 2 for layer in heads["layers"])
    assert [layer["layer"] for layer in channels["layers"]] == [0, 1, 2]
    for layer in channels["layers"]:
        assert len(layer["parts"]) == 6 and layer["num_parts"] == 40
        shown = [sum(part["use"][task] for part in layer["parts"]) for task in (0, 1)]
        assert shown == pytest.approx(layer["covered"], abs=1e-3)
        assert layer["apart"][0][1] == layer["apart"][1][0] > 0 == layer["apart"][0][0]
        for part in layer["parts"]:
            assert len(part["texts"]) == 2 and part["texts"][0]["use"] >= part["texts"][1]["use"] > 0
            words = "".join(part["texts"][0]["words"]).strip("… ")
            assert any(words in text for text in TEXTS)


def test_a_pruned_model_without_some_sub_blocks_is_explored(tmp_path: Any) -> None:
    dense = str(folder(tmp_path / "dense"))
    chosen: dict[str, Any] = {"method": "shortgpt", "sparsity": 0.3, "progress": False}
    prune_to_folder(dense, tmp_path / "small", tasks=[], **{**chosen, "method": "random", "min_channels": 4})
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    found = explore(small, tokenizer(), {"one": TEXTS}, progress=False)
    assert [layer["num_parts"] for layer in found["maps"][1]["layers"]] == [
        axis.units for axis in describe(small).axes if axis.name == CHANNELS
    ]


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"num_units": 0}, {"num_kept": 0}):
        with pytest.raises(UserError, match="must be at least 1"):
            explore(model(), tokenizer(), {"one": TEXTS}, progress=False, **wrong)
    broken = model()
    with torch.no_grad():
        broken.model.layers[1].mlp.gate_proj.weight[3] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite activations at the input of layer 1 mlp\.down_proj"):
        explore(broken, tokenizer(), {"one": TEXTS}, calibration=Calibration(num_texts=4), progress=False)
