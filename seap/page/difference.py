"""`seap diff`: what one network keeps of a model that another doesn't, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from seap.disk.place import at_home
from seap.errors import UserError
from seap.evidence.agreement import expected_jaccard, jaccard, mean
from seap.models import kinds
from seap.models.axes import BLOCK, KV_GROUPS, QUERY_HEADS, WIDTH_NAMES, Masks
from seap.pruning.checkpoint import MASK_FILE, read_provenance
from seap.pruning.provenance import SEAP_JSON
from seap.selection.mask import load_masks
from seap.serving.networks.network import load_network

TAKES = "seap diff takes mask files, networks of seap pack, and folders of seap prune"
FACTS = ("model", "tasks", "method", "realised_sparsity", "params_after")


@dataclass(frozen=True)
class Side:
    """One of the two: its masks over the units of the dense model, and what is known of it."""

    name: str
    masks: Masks
    about: Mapping[str, Any]
    bytes: int

    @classmethod
    def of(cls, name: str) -> "Side":
        """Raises UserError for what says of no unit whether it stays."""
        path = at_home(name)
        if not path.exists() and path.with_name(f"{path.name}.safetensors").is_file():
            path = path.with_name(f"{path.name}.safetensors")
        if path.is_file():
            network = load_network(path)
            return cls(name, dict(network.masks), network.about, path.stat().st_size)
        if not path.is_dir():
            raise UserError(f"no such file or folder: {name}")
        if not (path / MASK_FILE).is_file():
            raise UserError(_without_masks(path))
        masks, about = load_masks(path / MASK_FILE)
        told = read_provenance(path) if (path / SEAP_JSON).is_file() else {}
        return cls(name, masks, {**about, **told}, kinds.look(path).bytes)

    def units(self, others: Masks) -> Masks:
        """Its masks but for whole layers; query heads too, as its groups say, where the others' tell them apart."""
        own = {key: mask for key, mask in self.masks.items() if not key.endswith(f".{BLOCK}")}
        for key, heads in others.items():
            groups = own.get(key.replace(QUERY_HEADS, KV_GROUPS))
            if key.endswith(QUERY_HEADS) and key not in own and groups is not None:
                own[key] = groups.repeat_interleave(max(1, heads.numel() // groups.numel()))
        return own

    def facts(self) -> dict[str, Any]:
        known = {name: self.about[name] for name in FACTS if self.about.get(name) is not None}
        return {"name": self.name, **known, "bytes": self.bytes}


def _without_masks(folder: Path) -> str:
    networks = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if (folder / "config.json").is_file() or not networks:
        return f"{folder} has no {MASK_FILE}, which says what a network keeps; {TAKES}"
    return f"{folder} holds several files ({', '.join(networks[:8])}); give one of them, as {folder / networks[0]}"


def difference(first: str, second: str) -> dict[str, Any]:
    """What two networks of one model keep: by layer and axis, in common and alone, as plain values.

    Raises UserError for two of different models.
    """
    a, b = Side.of(first), Side.of(second)
    one, two = a.units(b.masks), b.units(a.masks)
    for key in sorted(one.keys() | two.keys()):
        sizes = [masks[key].numel() if key in masks else "no" for masks in (one, two)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{first} and {second} are of different models: {key} has {sizes[0]} units in the one and {sizes[1]} "
                "in the other; compare two networks of one model"
            )
    layers = [_layer(key, one[key], two[key]) for key in one]
    layers.sort(key=lambda row: (row["layer"], WIDTH_NAMES.index(row["axis"])))
    names = [name for name in WIDTH_NAMES if any(row["axis"] == name for row in layers)]
    marks = [side.about.get("fingerprint") for side in (a, b)]
    return {
        "a": a.facts(),
        "b": b.facts(),
        "same_weights": None if None in marks else marks[0] == marks[1],
        "axes": {name: _axis([row for row in layers if row["axis"] == name]) for name in names},
        "layers": layers,
    }


def _layer(key: str, one: Tensor, two: Tensor) -> dict[str, Any]:
    """Of one axis of one layer; `only_a` and `only_b` are places of units in the dense model."""
    _, layer, name = key.split(".")
    counts = int(one.sum()), int(two.sum())
    return {
        "layer": int(layer),
        "axis": name,
        "units": one.numel(),
        "a": counts[0],
        "b": counts[1],
        "both": int((one & two).sum()),
        "overlap": jaccard(one, two),
        "by_chance": expected_jaccard(one.numel(), *counts),
        "only_a": (one & ~two).nonzero().flatten().tolist(),
        "only_b": (two & ~one).nonzero().flatten().tolist(),
    }


def _axis(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Units in all layers together; the overlap is the mean over layers."""
    sums = {name: sum(row[name] for row in rows) for name in ("units", "a", "b", "both")}
    return sums | {name: mean([row[name] for row in rows]) for name in ("overlap", "by_chance")}


def show_difference(found: Mapping[str, Any], console: Console) -> None:
    """Both networks, then a line for each layer, then the sum."""
    table = Table("", "A", "B", box=None, header_style="bold")
    for name, (one, two) in _facts(found).items():
        table.add_row(f"[bold]{name}[/bold]", escape(one), escape(two))
    console.print(table)
    if found["same_weights"] is False:
        console.print("They were made from different weights: units are compared by their places.")
    table = Table("layer", box=None, header_style="bold")
    for name in found["axes"]:
        for column in (f"{name.replace('_', ' ')}: A", "B", "both", "overlap", "by chance"):
            table.add_column(column, justify="right")
    for layer in sorted({row["layer"] for row in found["layers"]}):
        own = {row["axis"]: row for row in found["layers"] if row["layer"] == layer}
        table.add_row(str(layer), *[cell for name in found["axes"] for cell in _cells(own.get(name))])
    table.add_row("all", *[cell for axis in found["axes"].values() for cell in _cells(axis)], style="bold")
    console.print(table)
    console.print("Overlap: of the units that either keeps, the share that both keep. Which units: --json.")


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["–"] * 5
    return [*(f"{row[name]:,}" for name in ("a", "b", "both")), f"{row['overlap']:.0%}", f"{row['by_chance']:.0%}"]


def _facts(found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    sides = found["a"], found["b"]

    def told(name: str, form: str = "{}") -> tuple[str, str]:
        values = [side.get(name) for side in sides]
        one, two = (
            "–" if value is None else ", ".join(value) if isinstance(value, list | tuple) else form.format(value)
            for value in values
        )
        return one, two

    size = tuple(f"{side['bytes'] / 1e6:,.1f} MB" for side in sides)
    rows = {"what": told("name"), "made from": told("model"), "for": told("tasks"), "method": told("method")}
    rows |= {"removed": told("realised_sparsity", "{:.1%} of the attention and MLP weights")}
    rows |= {"parameters": told("params_after", "{:,}"), "on disk": (size[0], size[1])}
    return {name: pair for name, pair in rows.items() if pair != ("–", "–")}
