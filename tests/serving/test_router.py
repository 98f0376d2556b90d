"""The router: its features, its arithmetic, what it learns, when it abstains, and its file."""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from routed import OPTIONS, tasks_files
from tiny import ROWS, model
from toy import folder, tokenizer

from seap.cli.main import main
from seap.errors import UserError
from seap.files import read_about
from seap.serving.networks.network import Network, free_layers
from seap.serving.routing import prompts
from seap.serving.routing.router import Features, Route, Router, features_of, load_router, read_features
from seap.serving.routing.routing import _scatter, load_prompts, make_router, reliability


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2"])
def test_features_are_means_over_tokens_however_they_are_batched(name: str) -> None:
    net = model(name)
    rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    found = features_of(net, rows, 2)
    together = found.values
    assert found.lengths.tolist() == [3, 1, 5]
    assert together.shape == (3, 2 * net.config.hidden_size)
    for row, own in zip(rows, together, strict=True):
        embedded = net.get_input_embeddings()(torch.tensor(row)).mean(0)
        hidden = net(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0].mean(0)
        assert torch.allclose(own, torch.cat([embedded, hidden]), atol=1e-5)
    assert torch.equal(features_of(net, rows, 0).values, together[:, : net.config.hidden_size])
    with pytest.raises(UserError, match="has 3 layers"):
        features_of(net, rows, 4)


def test_threads_read_features_of_one_model_as_if_alone() -> None:
    net = model("llama")
    rows = [[5 + place % 7] * (1 + place % 5) for place in range(200)]
    alone = [features_of(net, [row], 2).values for row in rows]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = [*pool.map(lambda row: features_of(net, [row], 2).values, rows)]
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(one, own) for one, own in zip(found, alone, strict=True))


def test_a_route_by_hand() -> None:
    """Logits (2, 0) of features (1, 0): confidence e²/(e²+1) = 0.8808.

    Its distance from the centre 0 is 1; with 4 tokens 0.5 + 2 / 4 = 1 is expected, with 1 token 2.5.
    """
    router = Router(
        tasks=("a", "b"),
        weight=torch.tensor([[2.0, 0.0], [0.0, 0.0]]),
        bias=torch.zeros(2),
        mean=torch.zeros(2),
        directions=torch.tensor([[1.0], [0.0]]),
        centres=torch.tensor([[0.0], [9.0]]),
        scatter=torch.tensor([0.5, 2.0]),
        threshold=0.8,
        limit=1.5,
    )
    values = torch.tensor([[1.0, 0.0], [0.1, 0.0], [3.0, 0.0], [1.0, 0.0]])
    first, unsure, far, short = router.route(Features(values, torch.tensor([4.0, 4.0, 4.0, 1.0])))
    assert first == Route("a", "a", pytest.approx(0.8808, abs=1e-4), pytest.approx(1.0))
    assert unsure.task is None and unsure.nearest == "a" and unsure.confidence < 0.8
    assert short.distance == pytest.approx(2.5**-0.5)
    assert far.task is None and far.distance == pytest.approx(3.0) and far.confidence > 0.99


def test_it_learns_is_tested_on_other_prompts_and_keeps_its_word(tmp_path: Path) -> None:
    net, words = model(vocab_size=97), tokenizer()
    specs = tasks_files(tmp_path)
    router = make_router(net, words, specs, OPTIONS)
    report = router.about["report"]
    counts = torch.tensor(report["confusion"]["counts"])
    assert report["n"] == int(counts.sum()) == 36 and counts.sum(1).tolist() == [12, 12, 12]
    assert report["accuracy"] == pytest.approx(int(counts.diag().sum()) / 36) and report["accuracy"] > 0.9
    assert report["variants"].keys() == prompts.VARIANTS.keys()
    assert report["variants"]["without template"]["accuracy"] > 0.8
    assert report["unseen"].keys() == {"red", "green", "blue"}
    assert all(found["abstained"] >= found["by_confidence_alone"] for found in report["unseen"].values())

    path = tmp_path / "router.safetensors"
    router.save(path)
    again = load_router(path, net)
    made, read = (one.predict(net, words, ["w9 w40", ""]) for one in (router, again))
    assert [(route.task, route.nearest) for route in made] == [(route.task, route.nearest) for route in read]
    for before, after in zip(made, read, strict=True):
        assert (before.confidence, before.distance) == pytest.approx((after.confidence, after.distance), rel=1e-5)
    with pytest.raises(UserError, match="another model"):
        load_router(path, model(seed=5))


def test_no_test_prompt_is_learnt_from(tmp_path: Path) -> None:
    specs = tasks_files(tmp_path)
    train, test = (load_prompts(specs, split, OPTIONS) for split in ("train", "test"))
    assert all(not set(train[name]) & set(test[name]) for name in train)
    with pytest.raises(UserError, match="two tasks or more"):
        load_prompts(specs[:1], "train", OPTIONS)


def test_reliability_by_hand() -> None:
    """0.95 twice, one right: |0.5 − 0.95| · 2/4; 0.65 twice, both right: |1 − 0.65| · 2/4."""
    found = reliability(torch.tensor([0.95, 0.95, 0.65, 0.65]), torch.tensor([True, False, True, True]))
    assert found["expected_calibration_error"] == pytest.approx(0.45 / 2 + 0.35 / 2, abs=1e-6)
    assert [(part["n"], part["accuracy"]) for part in found["bins"]] == [(2, 1.0), (2, 0.5)]


def test_what_a_length_lets_expect() -> None:
    """Offsets of 3 + 8 / T on the mean, half of it or half more, give 3 and 8; what doesn't fall with T gives b = 0."""
    lengths = torch.tensor([1.0, 2, 4, 8, 64]).repeat_interleave(2)
    offsets = (3 + 8 / lengths) * torch.tensor([0.5, 1.5]).repeat(5)
    assert torch.allclose(_scatter(offsets, lengths), torch.tensor([3.0, 8.0]), rtol=1e-4)
    assert _scatter(lengths, lengths)[1] < 1e-6


def test_variants() -> None:
    rng = random.Random(0)
    asked = ["Sort: b a ->", "Sort: d c ->", "Sort: f e ->"]
    assert prompts.without_template(asked, rng) == ["b a", "d c", "f e"]
    assert prompts.shortened(asked, rng)[0] == "Sort: b"
    assert prompts.in_chat(asked, rng)[0] == "User: Sort: b a ->\nAssistant:"
    texts = ["Goal: sort b a\nSolution: a b", "Goal: put d c\nSolution: c d", "Goal: say it\nSolution: it"]
    assert prompts.beginning(texts, rng) == ["sort b a", "put d c", "say it"]
    long = [" ".join(f"{start}{place}" for place in range(40)) for start in "abcdefgh"]
    made = prompts.beginning(long, rng)
    assert all(text.startswith(f"{own} ") and 5 <= len(own.split()) <= 20 for text, own in zip(long, made, strict=True))
    assert len({len(own.split()) for own in made}) > 3
    assert all(made == made.lower() for made in prompts.altered(asked, rng))


def test_layers_that_no_network_changes() -> None:
    whole, part = torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, True])
    plain = Network({"layers.0.channels": whole, "layers.1.channels": whole, "layers.10.channels": part})
    repaired = Network(plain.masks, biases={"layers.1.channels": torch.zeros(2)})
    assert free_layers({"a": plain}, 11) == 10
    assert free_layers({"a": plain, "b": repaired}, 11) == 1
    assert free_layers({}, 11) == 11


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = folder(tmp_path / "net")
    specs, out = ",".join(tasks_files(tmp_path)), tmp_path / "router.safetensors"
    words = ["route", "fit", str(net), "--tasks", specs, "--out", str(out), "--num-prompts", "40"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tasks"] == ["red", "green", "blue"] and report["depth"] == 2
    assert read_about(out)[0] == "router"
    assert main(["inspect", str(out)]) == 0 and "router" in capsys.readouterr().out
    assert main(words) == 1 and "is there already" in capsys.readouterr().err
    assert main(["route", "predict", str(net), "w8 w9 w10", "--router", str(out), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["routes"]
    assert found["nearest"] == "red" and 0 <= found["confidence"] <= 1
    assert main(["route", "predict", str(net), "--router", str(out)]) == 1
    assert "no prompt" in capsys.readouterr().err


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    net, specs = str(folder(tmp_path / "net")), ",".join(tasks_files(tmp_path))
    files = [tmp_path / name for name in ("one.safetensors", "two.safetensors", "other.safetensors")]
    for path, seed in zip(files, ("0", "0", "1"), strict=True):
        words = ["--tasks", specs, "--num-prompts", "40", "--router-seed", seed, "--out", str(path)]
        assert main(["route", "fit", net, *words]) == 0
    one, two, other = (path.read_bytes() for path in files)
    assert one == two != other


def test_every_family_has_features() -> None:
    for name in ROWS:
        assert features_of(model(name), [[5, 6], [7]], 1).values.isfinite().all()


def test_a_token_beyond_the_embedding_is_named_before_the_model_reads_it() -> None:
    with pytest.raises(UserError, match=r"token 96 \('w96'\), the model's embedding 90 tokens"):
        read_features(model(vocab_size=90), tokenizer(), ["w5 w96"], 0, 256)


def test_prompts_longer_than_the_models_positions_are_read_as_far_as_these_go() -> None:
    net, words = model("gpt2"), tokenizer()
    longest = net.config.max_position_embeddings
    long, cut = (read_features(net, words, ["w5 " * number], 1, 256) for number in (longest + 9, longest))
    assert torch.equal(long.values, cut.values) and long.lengths.tolist() == [longest]
