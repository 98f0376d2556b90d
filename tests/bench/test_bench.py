"""Speed is measured on sliced models and set beside ceilings that are arithmetic; figures of time are not asserted."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import model
from toy import folder, texts_file

from seap.activations.calibration import calibrate
from seap.bench import bench
from seap.bench.calibration import one_by_one, random_corpus
from seap.bench.graphs import GraphedStep
from seap.bench.options import Bench
from seap.bench.speed import Runner
from seap.cli.main import main
from seap.errors import UserError
from seap.models import shapes
from seap.models.arch import describe
from seap.pruning.commands import prune_to_folder
from seap.pruning.prune import prune
from seap.text.options import Calibration

QUICK = {"prompt_length": 8, "new_tokens": 4, "repeats": 2}


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-2-7b", 6.74), ("llama-2-13b", 13.02), ("llama-3-8b", 8.03), ("llama-3.2-1b", 1.24), ("qwen3-0.6b", 0.60)],
)
def test_public_shapes_have_their_published_sizes(name: str, billions: float) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(shapes.shape_config(name))
    assert sum(p.numel() for p in built.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("size", ["llama:10m", "qwen3:0.1b", "mistral:0.5b", "llama:7b"])
def test_a_size_is_about_what_is_asked(size: str) -> None:
    values = shapes.of_size(float(size.split(":")[1][:-1]) * (1e9 if size.endswith("b") else 1e6))
    hidden, layers = values["hidden_size"], values["num_hidden_layers"]
    made = layers * (4 * hidden * hidden + 3 * hidden * values["intermediate_size"])
    assert made == pytest.approx(float(size.split(":")[1][:-1]) * (1e9 if size.endswith("b") else 1e6), rel=0.3)
    assert shapes.shape_config(size).model_type == size.split(":")[0]


def test_bytes_and_operations_by_hand() -> None:
    """llama, 3 layers, hidden 24, 8 heads and 4 groups of size 8, 40 channels, vocabulary 97, float32, with biases."""
    options = Bench(prompt_length=10, new_tokens=4)
    dense = model("llama", attention_bias=False, mlp_bias=False)
    layer = 24 * 64 + 2 * 24 * 32 + 64 * 24 + 3 * 24 * 40 + 2 * 24
    linears = 3 * layer + 24
    assert bench.work(dense, "decode", 2, options) == 4 * (linears + 97 * 24 + 2 * 3 * 4 * 8 * 12 * 2)
    assert bench.work(dense, "prefill", 2, options) == 2 * (linears + 3 * 64 * 10)
    tied = model("llama-tied")
    head = tied.get_input_embeddings().weight.numel()
    assert bench.work(tied, "decode", 1, options) > 4 * head


def test_experts_that_no_token_goes_to_are_not_read() -> None:
    """mixtral, 2 of E experts for each token: a step of one row reads 2 of E, of two rows 1 - (1 - 2/E)² of them."""
    options = Bench(prompt_length=10, new_tokens=4)
    sparse = model("mixtral")
    experts = describe(sparse).experts(0)
    assert experts is not None and experts.per_token == 2
    num, layers = experts.num_experts, sparse.config.num_hidden_layers
    params = layers * sum(experts[name].numel() for name in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"))
    everything = sum(p.numel() for p in sparse.parameters()) - sparse.get_input_embeddings().weight.numel()
    cache = 2 * layers * sparse.config.num_key_value_heads * describe(sparse).head_size * 12
    for rows, read in ((1, 2 / num), (2, 1 - (1 - 2 / num) ** 2)):
        expected = 4 * (everything - params * (1 - read) + rows * cache)
        assert bench.work(sparse, "decode", rows, options) == pytest.approx(expected)


def test_random_weights_are_pruned_and_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = "bench --random-weights llama:0.002b --sparsity 0.5 --batch 1 --batch 2 --prompt-length 8 --new-tokens 4"
    assert main([*words.split(), "--repeats", "2", "--json", "--out", str(tmp_path / "bench.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["phase"], row["batch"]) for row in found["rows"]] == [
        ("prefill", 1),
        ("decode", 1),
        ("prefill", 2),
        ("decode", 2),
    ]
    for row in found["rows"]:
        assert row["ratio"] > 0 and 1 < row["ceiling"] < 2.01 and row["pruned_tokens_per_s"] > 0
        assert row["pruned_of_limit"] > 0 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert found["models"]["pruned"]["params"] < found["models"]["dense"]["params"]
    assert json.loads((tmp_path / "bench.json").read_text())["kind"] == "bench"
    assert main(["report", str(tmp_path / "bench.json"), "--out", str(tmp_path / "page.html")]) == 0


def test_an_output_layer_that_is_cut_raises_the_ceiling(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench --random-weights llama:0.002b --batch 1 --prompt-length 8 --new-tokens 2 --repeats 1 --phase decode"
    found = []
    for more in ([], ["--vocabulary", "500"]):
        assert main([*words.split(), *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    whole, cut = (one["rows"][0]["ceiling"] for one in found)
    assert cut > whole and found[1]["models"]["pruned"]["params"] < found[0]["models"]["pruned"]["params"]


def test_folders_are_measured_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    prune_to_folder(dense, tmp_path / "small", tasks=[task], min_channels=4, method="seap-paper", progress=False)
    found = bench.bench([dense, str(tmp_path / "small")], Bench(batch=(1,), **QUICK), loading={"device": "cpu"})
    assert {row["model"] for row in found["rows"]} == {str(tmp_path / "small")} and len(found["rows"]) == 2
    assert main(["bench", dense, str(tmp_path / "small"), "--repeats", "1", "--new-tokens", "2", "--batch", "1"]) == 0
    assert "limit: the pruned" in capsys.readouterr().out


def test_calibration_beside_a_bare_forward_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = str(folder(tmp_path / "dense"))
    assert main(["bench", "--calibration", dense, "--tokens", "512", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ("forward", "calibration", "second_moments", "prompts", "one_by_one", "one_by_one_uncollected")
    assert all(found[f"{name}_tokens_per_s"] > 0 for name in names) and found["num_tokens"] == 512
    assert main(["bench", "--calibration", dense, "--tokens", "128"]) == 0
    assert "as many as one prompt at a time" in capsys.readouterr().out


def test_one_prompt_at_a_time_measures_the_same() -> None:
    dense = model("llama")
    corpus = random_corpus(dense, 64, 16)
    found, ours = one_by_one(dense, corpus), calibrate(dense, corpus, Calibration(), progress=False)
    assert not any(module._forward_hooks for module in dense.modules())
    for axis in describe(dense).axes:
        theirs, mine = found[axis.key], ours[axis.key]
        assert theirs.count == mine.count == 64
        for one, other in ((theirs.mean, mine.mean), (theirs.m2, mine.m2), (theirs.mean_square, mine.mean_square)):
            assert one is not None
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_compiled_decoding_writes_what_eager_writes(name: str) -> None:
    """With a static cache whose layers differ in KV groups; the compiler's own code generation is left out."""
    pruned = model(name)
    prune(pruned, method="random", sparsity=0.4, min_channels=4, progress=False)
    ids = torch.arange(12).reshape(2, 6)
    compiled = Runner.of(pruned, "compile", 14, backend="eager")
    expected = Runner.of(pruned).write(ids, 8)[0]
    assert torch.equal(compiled.write(ids, 8)[0], expected)
    assert torch.equal(compiled.write(ids, 8)[0], expected)  # the cache was emptied
    assert compiled.prefill(2, 6) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bench", "name two or more models"),
        ("bench one", "name two or more models"),
        ("bench --random-weights lama:1b", "name a shape"),
        ("bench one --random-weights llama:1m", "leave out one"),
        ("bench --random-weights llama:1m --batch 0", "--batch 0: must be at least 1"),
        ("bench one --calibration two", "leave out the other models"),
    ],
)
def test_bad_requests_are_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 1
    assert said in capsys.readouterr().err


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="--sparsity 1: must be"):
        Bench(sparsity=1)


class Recorded:
    """Stands in for a CUDA graph where there is no GPU: plays the step again, and recording leaves no trace."""

    def __init__(self, step: GraphedStep) -> None:
        self.step = step

    def replay(self) -> None:
        assert self.step._logits is not None
        self.step._logits.copy_(self.step._step())


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_recorded_step_writes_what_eager_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = model(name)
    prune(pruned, method="random", sparsity=0.4, min_channels=4, progress=False)
    ids = torch.arange(12).reshape(2, 6)
    monkeypatch.setattr("seap.bench.graphs.is_on_gpu", lambda model: True)
    made = Runner.of(pruned, "graphs", 14)
    step = made.forward
    assert isinstance(step, GraphedStep)

    @contextlib.contextmanager
    def recording(graph: Recorded) -> Iterator[None]:
        lengths = [layer.cumulative_length.clone() for layer in step.cache.layers]
        yield
        step._put_back_(lengths)

    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Recorded(step))
    monkeypatch.setattr(torch.cuda, "graph", recording)
    expected = Runner.of(pruned).write(ids, 8)[0]
    assert torch.equal(made.write(ids, 8)[0], expected)
    assert torch.equal(made.write(ids, 8)[0], expected)  # the cache was emptied


def test_graphs_need_a_gpu_and_a_cache_that_counts_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--mode graphs needs a CUDA GPU"):
        Runner.of(model("llama"), "graphs", 14)
    monkeypatch.setattr("seap.bench.graphs.is_on_gpu", lambda model: True)
    for name in ("mistral", "lfm2"):
        with pytest.raises(UserError, match="counts tokens outside of the GPU"):
            Runner.of(model(name), "graphs", 14)
