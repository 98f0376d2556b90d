"""Linears laid out for decoding on a CPU compute what they computed, and the model can be had back."""

import pytest
import torch
from tiny import ALL, MOE, ids, model

from seap import prune
from seap.bench.speed import Runner
from seap.cli.main import main
from seap.errors import UserError
from seap.models import prepack
from seap.models.cache import growing_cache
from seap.models.modes import cache_name
from seap.models.prepack import prepack_, prepacked

pytestmark = pytest.mark.skipif(not prepack._supported(torch.bfloat16), reason="oneDNN on x86 is needed")


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepack, "MIN_BYTES", 0)


@pytest.mark.parametrize("name", [*ALL, *MOE])
def test_outputs_stay_and_the_model_comes_back(name: str) -> None:
    dense = model(name)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    with torch.no_grad():
        expected = dense(ids()).logits
        with prepacked(dense):
            torch.testing.assert_close(dense(ids()).logits, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(dense(ids()).logits, expected)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert not any("forward" in vars(module) for module in dense.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pruned_model_writes_the_same_text(dtype: torch.dtype) -> None:
    """Widths that differ from layer to layer, and biases; the cache grows in place."""
    pruned = model("llama", attention_bias=True, mlp_bias=True)
    prune(pruned, method="random", sparsity=0.4, min_channels=4, progress=False)
    pruned.to(dtype)
    expected = pruned.generate(ids(), max_new_tokens=40, do_sample=False)
    prepack_(pruned)
    given = {cache_name(pruned): growing_cache()}
    assert torch.equal(pruned.generate(ids(), max_new_tokens=40, do_sample=False, **given), expected)
    assert torch.equal(Runner.of(pruned, "prepacked").write(ids(), 40)[0], Runner.of(pruned).write(ids(), 40)[0])


def test_what_reads_the_same_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k and v; gate and up: a Llama's layer is four products of seven linears, and nothing is held between calls."""
    dense, ran = model("llama"), []
    forward = prepack.Product.forward
    monkeypatch.setattr(prepack.Product, "forward", lambda *given: ran.append(1) or forward(*given))
    with torch.no_grad(), prepacked(dense):
        dense(ids())
        assert len(ran) == 4 * dense.config.num_hidden_layers + 1
        products = [vars(layer.self_attn.q_proj)["forward"].func.__self__ for layer in dense.model.layers]
        assert all(product.read is None and not product.parts for product in products)


def test_other_inputs_are_not_taken_for_the_same() -> None:
    dense = model("llama")
    attention = dense.model.layers[0].self_attn
    one, other = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    with torch.no_grad():
        expected = [attention.q_proj(one), attention.k_proj(other), attention.q_proj(one)]
        with prepacked(dense):
            found = [attention.q_proj(one), attention.k_proj(other), attention.q_proj(one)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_small_weights_and_embeddings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = prepack_(model("llama-tied"))
    assert not tied.get_input_embeddings().weight.is_meta and not tied.lm_head.weight.is_meta
    assert tied.model.layers[0].mlp.down_proj.weight.is_meta  # freed: the copy laid out is the only one
    monkeypatch.setattr(prepack, "MIN_BYTES", 1 << 20)
    assert not any(parameter.is_meta for parameter in prepack_(model("llama")).parameters())


def test_a_prepacked_model_is_not_cut() -> None:
    with pytest.raises(UserError, match="load the model"):
        prune(prepack_(model("llama")), method="random", sparsity=0.5, progress=False)


def test_what_cannot_be_laid_out_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="float32 or bfloat16"):
        prepack_(model("llama", dtype=torch.float16))
    with pytest.raises(UserError, match="for CPUs"):
        prepack_(model("llama").to("meta"))
    words = "bench --random-weights llama:1m --dtype float16 --device cpu --mode prepacked --repeats 1"
    assert main(words.split()) == 1
    assert "float32 or bfloat16" in capsys.readouterr().err
