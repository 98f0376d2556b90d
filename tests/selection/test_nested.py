"""Repairs of every width from one factor are ridge's own; kept on disk they are the same."""

import re
from pathlib import Path

import pytest
import torch
from test_curves import ROWS, an_axis, both, rows_of
from tiny import model
from toy import TEXTS, tokenizer

import seap
from seap.activations.calibration import calibrate
from seap.activations.moments import Moments
from seap.activations.stats import Statistics
from seap.compensation.compensate import ridge
from seap.models import shelf
from seap.models.arch import describe
from seap.models.shelf import Shelf
from seap.selection.mask import choose_units, unit_places
from seap.selection.nested import nested_bytes, nested_of, repaired
from seap.text.corpus import Corpus
from seap.text.options import Calibration

OUTPUTS = 5


@pytest.mark.parametrize("unit_inputs", [1, 3])
@pytest.mark.parametrize("blocks", [1, 3])
def test_every_width_is_what_ridge_solves_for(unit_inputs: int, blocks: int) -> None:
    axis, fit, held = an_axis(unit_inputs), rows_of(80), rows_of(30)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(OUTPUTS, axis.num_inputs, generator=generator)
    scores = {axis.key: torch.rand(axis.num_inputs, generator=generator, dtype=torch.float64)}
    moments = both(fit, held, blocks=blocks)
    found = nested_of(axis, weight, {axis.key: moments}, unit_places(axis, scores), "ridge")
    assert len(found) == blocks
    for width in range(1, axis.units + 1):
        keep = choose_units([axis], scores, {axis.key: width})[axis.key].repeat_interleave(unit_inputs)
        own = repaired(weight, found, width)
        expected = ridge(weight, one_scale(moments.without_held(), keep), keep, 1e-2)
        assert own.weight is not None and expected.weight is not None
        torch.testing.assert_close(own.weight.double(), expected.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.bias, expected.bias, rtol=1e-4, atol=1e-5)


def one_scale(moments: Moments, keep: torch.Tensor) -> Moments:
    """With λ over the mean variance of all inputs of a block, where ridge takes that of the kept ones."""
    parts = []
    for own, kept in zip(moments.split(), keep.split(keep.numel() // moments.num_blocks), strict=True):
        assert own.co is not None
        diagonal, moved = own.co.diagonal(), own.co.clone()
        if kept.any():
            more = 1e-2 * (diagonal.mean() - diagonal[kept].mean())
            moved[kept, kept] += more / (1 + 1e-2)  # what is added raises the mean again, by a hundredth of it
        parts.append(Moments(own.count, own.mean, own.m2, moved))
    return Moments.joined(parts)


FACTORS, REPAIRS, WORDS = r".*\.inverse", r"\d+\.repair\d+", r"\d+\."


def test_on_disk_a_network_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search looks at again and again lies, where it is much, in files of folders that go with it: factors,
    repairs, and what the dense model says. Where the disk has no room for it, it stays in memory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made, places = [], []
    real = Shelf.put

    def put(self: Shelf, name: str, value: torch.Tensor) -> torch.Tensor:
        places[-1] |= {(kind, self.on_disk) for kind in (FACTORS, REPAIRS, WORDS) if re.fullmatch(kind, name)}
        return real(self, name, value)

    monkeypatch.setattr(Shelf, "put", put)
    for much, room in ((shelf.MUCH, True), (0, True), (0, False)):
        monkeypatch.setattr(shelf, "MUCH", much)
        monkeypatch.setattr(shelf, "has_room", lambda *_, room=room: room)
        places.append(set())
        net, options = model("llama", intermediate_size=80), {"search_evaluations": 4, "descents": 1}
        seap.prune(net, tokenizer(), task={"words": TEXTS}, sparsity=0.4, progress=False, **options)
        made.append(net.state_dict())
    assert places == [{(kind, where) for kind in (FACTORS, REPAIRS, WORDS)} for where in (False, True, False)]
    for other in made[1:]:
        assert made[0].keys() == other.keys() and all(torch.equal(made[0][key], other[key]) for key in other)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_all_factors_take_decides_where_they_lie(tmp_path: Path) -> None:
    """Heads, which come first, are narrow and say nothing of channels; of statistics on disk only shapes are read."""
    net = model("llama", intermediate_size=160)
    statistics = calibrate(net, Corpus("toy", ROWS, "t"), Calibration(second_moments=True), progress=False)
    arch = describe(net)
    stored = Statistics(statistics, ROWS, on_disk=True)
    assert [stored.num_blocks(key) for key in stored] == [1] * len(stored)
    found = nested_bytes(arch, arch.axes, lambda axis: stored.num_blocks(axis.key))
    assert found == sum(4 * a.num_inputs * (a.num_inputs + net.config.hidden_size) for a in arch.axes)
    halves = calibrate(
        net, Corpus("toy", ROWS, "t"), Calibration(second_moments=True, moments="block:80"), progress=False
    )
    assert Statistics(halves, ROWS, on_disk=True).num_blocks("layers.0.channels") == 2
