"""Artefacts of ours from outside: whatever is done to one, it is read or refused in one line that names it."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from safetensors.torch import save_file
from toy import TEXTS

from seap import schema
from seap.activations.calibration import check_measured, check_same_model, identity
from seap.activations.moments import Moments
from seap.activations.stats import Statistics, load_statistics, save_statistics
from seap.errors import UserError
from seap.files import write_tensors
from seap.models.arch import describe
from seap.page import describe as page
from seap.page import sources
from seap.pruning.checkpoint import read_provenance
from seap.selection.mask import load_masks, save_masks
from seap.serving.networks.network import Network, load_network, load_networks, save_network
from seap.serving.routing.router import Router, load_router

spec = importlib.util.spec_from_file_location("mutations", ROOT / "runs" / "robustness" / "mutations.py")
assert spec is not None and spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    """One of each artefact, of one tiny model."""
    place, arch, own = tmp_path_factory.mktemp("artefacts"), describe(model), identity(model)
    parts = {axis.key: Moments.of(torch.randn(9, axis.num_inputs), second=True) for axis in arch.axes}
    for moments in parts.values():
        moments.held = Moments.of(torch.randn(5, moments.mean.numel()))
    told = {"task": "t", "num_rows": 1, "num_tokens": 9, "second_moments": True, "parts": ["a"], "key": "k"}
    save_statistics(place / "stats.safetensors", Statistics(parts, ((1, 2, 3), (4,))), own | told)
    masks = {axis.key: torch.arange(axis.units) < axis.units // 2 for axis in arch.axes}
    about = own | {"tasks": ["t"], "method": "seap", "num_tokens": 9, "options": {"sparsity": 0.5}, "key": "k"}
    save_masks(place / "mask.safetensors", masks, about)
    axis = arch.axes[-1]
    rows, kept = arch.weight(axis.layer, axis.consumer).shape[0], int(masks[axis.key].sum())
    network = Network(masks, {axis.key: torch.randn(rows, kept)}, {axis.key: torch.randn(rows)})
    (place / "tasks").mkdir()
    save_network(place / "tasks" / "t.safetensors", network, about | {"task": "t"})
    width = model.get_input_embeddings().weight.shape[1]
    sizes: dict[str, tuple[int, ...]] = {"weight": (2, width), "bias": (2,), "mean": (width,), "directions": (width, 3)}
    tensors = {name: torch.rand(shape) for name, shape in (sizes | {"centres": (4, 3), "scatter": (2,)}).items()}
    Router(tasks=("t", "u"), about=own | {"key": "k"}, **tensors).save(place / "router.safetensors")
    (place / "seap.json").write_text(json.dumps(PROVENANCE))
    (place / "compare.json").write_text(json.dumps(COMPARED))
    return place


PROVENANCE: dict[str, Any] = {
    **{"model": "m", "method": "seap", "tasks": ["t"], "layers": [{"kv_groups": 1, "channels": 8}], "num_tokens": 9},
    "options": {"score": "a", "allocate": "b", "mask": "c", "compensate": "d"},
    **dict.fromkeys(("target_sparsity", "realised_sparsity", "total_sparsity", "non_embedding_sparsity"), 0.5),
    **{"params_before": 10, "params_after": 5, "seconds": 1.0, "versions": {"seap": "1"}},
}
ROW = {"method": "seap", "task": "t", "target_sparsity": 0.5, "seed": 0, "loss": 1.0, "acc": None, "control": None}
COMPARED: dict[str, Any] = {"kind": "compare", "model": "m", "rows": [ROW]}


def statistics_of(path: Path, model: Any) -> None:
    found, about = load_statistics(path)
    check_same_model([path], [about], model)
    check_measured([path], [found], model)


READERS: dict[str, Callable[[Path, Any], Any]] = {
    "stats.safetensors": statistics_of,
    "mask.safetensors": lambda path, _: load_masks(path),
    "tasks/t.safetensors": lambda path, model: load_networks(path.parent, model),
    "router.safetensors": load_router,
    "seap.json": lambda path, _: read_provenance(path.parent),
    "compare.json": lambda path, _: sources.read([path]),
}


@pytest.mark.parametrize("name", READERS)
def test_what_was_written_is_read(name: str, room: Path, model: Any) -> None:
    READERS[name](room / name, model)
    if name.endswith("safetensors"):
        assert page.describe(str(room / name))["kind"] in schema.METADATA


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_artefact_is_read_or_refused_in_one_line(
    name: str, seed: int, room: Path, model: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.getbasetemp() / "damaged" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(room / name, place)
    mutations.damage(place, random.Random(seed))
    for read in (READERS[name], lambda path, _: page.describe(str(path)) if name.endswith("safetensors") else None):
        try:
            read(place, model)
        except UserError as error:
            assert str(place) in str(error) or "another model" in str(error)
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "mask", "format": "1", "about": {"tasks": "t"}}, "Expected `array | null`, got `str` - at `$.tasks`"),
        ({"kind": "mask", "format": "2", "about": {}}, "has format '2', this seap reads 1"),
        ({"kind": "mask", "about": {}}, "has format None"),
        ({"kind": "soup", "format": "1", "about": {}}, "holds 'soup'; this seap knows stats, mask, network, router"),
        ({"kind": ["mask"], "format": "1", "about": {}}, "has no `kind` and `about`"),
        ({"kind": "stats", "format": "1", "about": {"task": "t"}}, "holds stats, expected mask"),
        ({"kind": "mask", "format": "1", "about": {"num_tokens": 10**30}}, "at `$.num_tokens`"),
        ({"kind": "mask", "format": "1", "about": {"samples": [float("nan")]}}, "at `$.samples[0]`"),
        ([1], "has no `kind` and `about`"),
    ],
)
def test_metadata_of_another_kind(change: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"layers.0.channels": torch.ones(4, dtype=torch.bool)}, path, {"seap": json.dumps(change)})
    with pytest.raises(UserError) as caught:
        load_masks(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("value", ["{", "[" * 100_000, "1" * 5000, "", '{"a": "\\ud83d"}', '{"a": "\\u0000"}'])
def test_metadata_that_is_no_json(value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"layers.0.channels": torch.ones(4, dtype=torch.bool)}, path, {"seap": value})
    with pytest.raises(UserError, match="its metadata can't be read as JSON"):
        load_masks(path)


def test_tensors_that_do_not_agree_are_named(room: Path, model: Any, tmp_path: Path) -> None:
    mean = torch.zeros(8, dtype=torch.float64)
    axis = {"layers.0.channels.count": torch.tensor(3), "layers.0.channels.mean": mean, "layers.0.channels.m2": mean}
    for change, said in (
        ({"layers.0.channels.m2": mean[:4].clone()}, r"channels.m2 has type F64 and shape \(4,\)"),
        ({"layers.0.channels.co": torch.zeros(8, 7)}, r"channels.co has type F32 and shape \(8, 7\), for 8 inputs"),
        ({"layers.0.channels.count": torch.tensor(3.0)}, "channels.count has type F32"),
        ({"layers.0.channels.count": torch.tensor(-3)}, "numbers that no activations have"),
        ({"layers.0.channels.m2": mean - 1}, "numbers that no activations have"),
        ({"layers.0.channels.mean": mean * torch.nan}, "numbers that no activations have"),
        ({"rows": torch.tensor([1]), "row_lengths": torch.tensor([2])}, "token rows and their lengths don't agree"),
        ({"rows": torch.tensor([1])}, "rows has type I64"),
        ({"soup": torch.tensor([1])}, "'soup' is of no axis"),
    ):
        write_tensors(tmp_path / "a.safetensors", "stats", axis | change, {"task": "t"})
        with pytest.raises(UserError, match=said):
            load_statistics(tmp_path / "a.safetensors")
    whole, _ = load_statistics(room / "stats.safetensors")
    for key in list(whole)[:1]:
        del whole[key]
        with pytest.raises(UserError, match=f"a: {key} is missing"):
            check_measured([Path("a")], [whole], model)
        whole[key] = Moments.of(torch.randn(3, 2))
        with pytest.raises(UserError, match=f"a: {key} has 2 inputs, the model"):
            check_measured([Path("a")], [whole], model)


def test_ids_beyond_the_model_are_refused(room: Path, model: Any) -> None:
    whole, _ = load_statistics(room / "stats.safetensors")
    whole.rows = ((1, 97),)
    with pytest.raises(UserError, match="ids beyond the model's 97"):
        check_measured([Path("a")], [whole], model)


def test_a_network_whose_weights_are_of_another_shape(room: Path, model: Any, tmp_path: Path) -> None:
    network = load_network(room / "tasks" / "t.safetensors")
    key = next(iter(network.weights))
    for part, said in ((network.weights[key][:, 1:], "shape"), (network.weights[key].long(), "int64")):
        save_network(tmp_path / "t.safetensors", Network(network.masks, {key: part.contiguous()}), network.about)
        with pytest.raises(UserError, match=f"weight.{key} has type .*{said}"):
            load_networks(tmp_path, model)
    save_network(tmp_path / "t.safetensors", Network(network.masks, left={key: torch.ones(2, 1)}), network.about)
    with pytest.raises(UserError, match=f"its correction {key} isn't whole"):
        load_networks(tmp_path, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": [{"channels": -1}]}, "`int` >= 0"),
        ({"layers": {"0": 1}}, "Expected `array`, got `object` - at `$.layers`"),
        ({"options": {"score": "a"}}, "missing required field `allocate`"),
        ({"seconds": "1"}, "`float`, got `str` - at `$.seconds`"),
        ({"realised_sparsity": float("nan")}, "$.realised_sparsity"),
        ({"promise": {"kind": "x"}}, "at `$.promise`"),
        ({"params_after": 10**40}, "$.params_after"),
    ],
)
def test_a_damaged_provenance_says_where(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "seap.json").write_text(json.dumps(PROVENANCE | change))
    with pytest.raises(UserError) as caught:
        read_provenance(tmp_path)
    assert said in str(caught.value) and str(caught.value).endswith("prune again")


def test_start_up_reads_no_schema() -> None:
    code = "import sys, seap, seap.cli.app; print([m for m in ('msgspec', 'torch', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_published_results_are_of_their_schema() -> None:
    for path in (ROOT / "results").rglob("*.json"):
        data = json.loads(path.read_text())
        if isinstance(data, dict) and data.get("kind") in sources.KINDS:
            sources.read([path])
    assert len(TEXTS) > 1
