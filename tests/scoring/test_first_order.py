"""First-order scores against one backward pass through the whole model, and against sums written out by hand."""

from typing import Any

import pytest
import torch
from tiny import ALL, model
from torch.nn.functional import cross_entropy

from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.models.arch import describe
from seap.models.axes import CHANNELS
from seap.pruning.surgery import cut_
from seap.scoring.first_order import first_order, unit_size
from seap.scoring.score import score_inputs, unit_scores
from seap.text.contrast import Contrast
from seap.text.rows import CountedRow

ROWS = tuple(
    tuple(row)
    for row in [
        torch.randint(3, 90, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        for length in (9, 4, 7, 12, 2)
    ]
)


def backward(dense: Any, rows: Any = ROWS) -> dict[str, torch.Tensor]:
    """Parameter name → gradient of the mean cross entropy over all next tokens, one row at a time."""
    dense.zero_grad()
    count = sum(len(row) - 1 for row in rows)
    for row in rows:
        tokens = torch.tensor([row])
        loss = cross_entropy(dense(tokens, use_cache=False).logits[0, :-1].float(), tokens[0, 1:], reduction="sum")
        (loss / count).backward()
    found = {name: value.grad.clone() for name, value in dense.named_parameters() if value.grad is not None}
    dense.zero_grad()
    return found


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_unit_is_all_that_goes_with_it(name: str) -> None:
    """For each unit: |w · g| over the rows and columns that surgery would take, whatever is fused or transposed."""
    dense: Any = model(name)
    arch = describe(dense)
    grads = {id(dense.get_parameter(key)): grad for key, grad in backward(dense).items()}
    found = first_order(arch, ROWS, batch_tokens=30)
    for axis in arch.axes:
        expected = torch.zeros(axis.units, dtype=torch.float64)
        for part in axis.slices:
            weight = arch.linear(axis.layer, part.module).weight
            product = (weight * grads[id(weight)]).abs().detach().double()
            for unit in range(axis.units):
                own = part.indices(torch.arange(axis.units) == unit)
                expected[unit] += product.index_select(part.dim, own).sum()
        torch.testing.assert_close(found[axis.key], expected, rtol=2e-3, atol=1e-4 * float(expected.max()))


def test_by_hand_over_q_k_v_o_and_over_gate_up_down() -> None:
    dense: Any = model("llama")  # 8 query heads of 8 in 4 KV groups, hidden 24, 40 channels
    grads = backward(dense)
    found = first_order(describe(dense), ROWS, batch_tokens=4096)
    attention, mlp = dense.model.layers[1].self_attn, dense.model.layers[1].mlp

    def product(module: Any, name: str) -> torch.Tensor:
        return (module.weight * grads[f"model.layers.1.{name}.weight"]).abs().detach()

    q, k, v, o = (product(getattr(attention, f"{n}_proj"), f"self_attn.{n}_proj") for n in "qkvo")
    group = q[32:48].sum() + k[16:24].sum() + v[16:24].sum() + o[:, 32:48].sum()
    assert float(found["layers.1.kv_groups"][2]) == pytest.approx(float(group), rel=1e-3)
    gate, up, down = (product(getattr(mlp, f"{n}_proj"), f"mlp.{n}_proj") for n in ("gate", "up", "down"))
    channel = gate[7].sum() + up[7].sum() + down[:, 7].sum()
    assert float(found["layers.1.channels"][7]) == pytest.approx(float(channel), rel=1e-3)


def test_gisp_divides_by_the_size_of_the_unit() -> None:
    dense: Any = model("llama")
    arch = describe(dense)
    statistics = Statistics(rows=ROWS)
    scores = {name: score_inputs(arch, statistics, name) for name in ("taylor", "gisp", "gisp-mean")}
    groups, channels = arch.axes[:2]
    sums = [{axis.key: unit_scores(axis, found[axis.key]) for axis in (groups, channels)} for found in scores.values()]
    plain, published, mean = sums
    # a group: 16 + 8 + 8 rows of 24, and 16 columns of 24
    size = (16 + 8 + 8 + 16) * 24
    torch.testing.assert_close(published[groups.key], plain[groups.key] / size)
    torch.testing.assert_close(mean[groups.key], plain[groups.key] / size)
    # a channel: in the code 3 · intermediate size, in the paper its 3 · hidden size weights
    torch.testing.assert_close(published[channels.key], plain[channels.key] / (3 * 40))
    torch.testing.assert_close(mean[channels.key], plain[channels.key] / (3 * 24))
    heads = describe(model("llama-mha")).axes[0]
    assert unit_size(heads, "gisp", describe(model("llama-mha")).weights(heads)) == 4 * 8 * 24


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "phi3"])
def test_what_is_gone_is_gone_as_if_it_were_cut(name: str) -> None:
    dense, arch = model(name), describe(model(name))
    masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in arch.axes}
    for axis in arch.axes:
        masks[axis.key][: axis.units // 2] = False
    found = first_order(arch, ROWS, masks=masks, batch_tokens=4096)
    cut = first_order(cut_(dense, masks), ROWS, batch_tokens=4096)
    for key, mask in masks.items():
        torch.testing.assert_close(found[key][mask], cut[key], rtol=1e-3, atol=1e-4 * float(cut[key].max()))
        assert not found[key][~mask].any()


def test_in_half_precision_it_is_float32_and_the_model_is_left_as_it_was() -> None:
    half: Any = model("qwen2", dtype=torch.bfloat16)  # tied embeddings
    half.requires_grad_(False)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    masks = {axis.key: torch.arange(axis.units) > 0 for axis in describe(half).axes}
    found = first_order(describe(half), ROWS, masks=masks, batch_tokens=4096)
    whole: Any = model("qwen2", dtype=torch.bfloat16).float()
    expected = first_order(describe(whole), ROWS, masks=masks, batch_tokens=4096)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6)
    after = half.state_dict()
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, after[name]) for name, value in before.items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in half.parameters())
    assert half.lm_head.weight is half.model.embed_tokens.weight


def test_only_the_tokens_that_count_make_the_loss() -> None:
    dense: Any = model("llama")
    arch = describe(dense)
    marked = tuple(CountedRow(row, [i == 1 and i < len(row) - 1 for i in range(len(row))]) for row in ROWS)
    found = first_order(arch, marked, batch_tokens=30)
    dense.zero_grad()
    longer = [row for row in ROWS if len(row) > 2]
    for row in longer:
        logits = dense(torch.tensor([row]), use_cache=False).logits[0]
        (cross_entropy(logits[1], torch.tensor(row[2])) / len(longer)).backward()
    down = dense.model.layers[0].mlp
    names = ("gate_proj", "up_proj", "down_proj")
    each = [(getattr(down, n).weight * getattr(down, n).weight.grad).abs().detach() for n in names]
    expected = each[0].sum(1) + each[1].sum(1) + each[2].sum(0)
    torch.testing.assert_close(found["layers.0.channels"], expected.double(), rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="no token of the text has a next one that counts"):
        first_order(arch, ((5,), (6,)), batch_tokens=30)


def test_channels_of_experts_are_no_rows_of_plain_linears() -> None:
    from toy import TEXTS, tokenizer

    import seap

    for method in ("gisp", "llm-pruner"):
        with pytest.raises(UserError, match="doesn't know mixtures of experts such as mixtral"):
            seap.prune(model("mixtral"), tokenizer(), task={"toy": TEXTS}, method=method, progress=False)
    assert describe(model("mixtral")).axes[1].name != CHANNELS


def test_of_choices_gisp_takes_the_right_ones_loss_less_the_wrong_ones() -> None:
    """The difference is taken before the absolute value; one mean over each side's tokens."""
    dense: Any = model("llama")
    right, wrong = ROWS[:2], ROWS[2:]
    sides = [backward(dense, rows) for rows in (right, wrong)]
    mlp = dense.model.layers[1].mlp
    expected = torch.zeros(40)
    for name, dim in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
        gradient = sides[0][f"model.layers.1.mlp.{name}.weight"] - sides[1][f"model.layers.1.mlp.{name}.weight"]
        expected += (getattr(mlp, name).weight.detach() * gradient).abs().sum(dim)
    statistics = Statistics(rows=ROWS, contrast=Contrast(right, wrong))
    found = score_inputs(describe(dense), statistics, "gisp")["layers.1.channels"]
    torch.testing.assert_close(found, expected.double() / (3 * 40), rtol=1e-3, atol=1e-6)
    of_text, taylor = (score_inputs(describe(dense), part, "taylor") for part in (Statistics(rows=ROWS), statistics))
    assert all(torch.equal(taylor[key], score) for key, score in of_text.items())
