"""A task's network: the units of the dense model that it keeps, and the linears that reconstruction gave it.

One file per task (kind `network`): the masks, for each repaired axis the consumer's bias, and every weight that
reconstruction changed, whole or (`sharing.py`) as a correction of low rank to what the mask keeps of the dense one. A
mask file alone is a network too, one without repairs, and small beside the model.
Shapes: k kept inputs of a consumer (or outputs of a producer), O outputs, D hidden size, r rank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seap.activations.calibration import check_same_model
from seap.compensation.compensate import Repairs, map_inputs
from seap.errors import UserError
from seap.files import Opened, read_about, write_tensors
from seap.models.arch import Arch, describe
from seap.models.axes import Axis, Masks, Slice
from seap.models.loader import load
from seap.pruning.checkpoint import MASK_FILE, previous
from seap.selection.mask import check_fits, check_masks, load_masks, realised_sparsity
from seap.selection.whole_layers import dropped_layers, refuse_whole_layers
from seap.serving.networks.packed import experts_between, not_of_this_model

VOCABULARY = "vocabulary"  # the tensor's name in a file


class Stored(Mapping[str, Tensor]):
    """The tensors of a file whose names begin with a prefix, each read when it is asked for."""

    def __init__(self, file: Opened, prefix: str) -> None:
        self.file, self.prefix = file, prefix
        self.names = tuple(name.removeprefix(prefix) for name in file.names if name.startswith(prefix))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.file.read(self.prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Network:
    """What a task's network is made of, given the dense model. Keys are those of the axes."""

    masks: Masks
    # by `weight_key`: a consumer's (O, k) or a producer's (k, D), units in the dense order
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)  # (O,): the consumer's whole bias
    # the weight is what the mask keeps of the dense one plus left (O, r) or (k, r) times right (r, k) or (r, D)
    left: Mapping[str, Tensor] = field(default_factory=dict)
    right: Mapping[str, Tensor] = field(default_factory=dict)
    vocabulary: Tensor | None = None  # int64, ascending: the tokens that it writes; all of them with None
    about: Mapping[str, Any] = field(default_factory=dict)

    def changes(self, layer: int) -> bool:
        """Whether anything of a layer differs from the dense model."""
        inside = f"layers.{layer}."
        cut = any(key.startswith(inside) and not bool(mask.all()) for key, mask in self.masks.items())
        return cut or any(key.startswith(inside) for key in (*self.weights, *self.biases, *self.left))

    @property
    def num_own(self) -> int:
        """Parameters that the network doesn't share with the dense model."""
        parts = (self.weights, self.biases, self.left, self.right)
        return sum(values.numel() for part in parts for values in part.values())


def weight_key(axis: Axis, part: Slice) -> str:
    """The key of one linear's own weight: the axis's for the consumer, with the linear's path for the others."""
    return axis.key if part.consumer else f"{axis.key}.{part.module}"


def network_of(arch: Arch, masks: Masks, repairs: Repairs | None = None) -> Network:
    """The network of masks and repairs made in memory: what `surgery.cut_` would give the model."""
    weights, biases = {}, {}
    for axis in arch.axes:
        repair = (repairs or {}).get(axis.key)
        if repair is None:
            continue
        if axis.usage_key:
            if repair.weight is not None:
                weights[axis.key] = repair.weight.to(arch.weight(axis.layer, axis.consumer).dtype)
            continue
        consumer = arch.consumer(axis)
        own = 0 if consumer.bias is None else consumer.bias.detach().cpu().double()
        biases[axis.key] = (own + repair.bias.cpu()).to(consumer.weight.dtype)
        if repair.weight is not None:
            weights[axis.key] = repair.weight.to(consumer.weight.dtype)
        if repair.inputs is not None:
            for part in (part for part in axis.slices if part.module in axis.producers):
                rows = arch.weight(axis.layer, part.module).detach()[part.indices(axis.kept_of(masks))]
                weights[weight_key(axis, part)] = map_inputs(rows, repair.inputs)
    return Network(masks, weights, biases)


@torch.no_grad()
def network_between(dense: Any, pruned: Any, masks: Masks) -> Network:
    """The network that makes `pruned` of `dense`. Raises UserError where it isn't one of dense's, cut and repaired."""
    arch, cut = describe(dense), describe(pruned)
    check_fits(arch, masks)
    refuse_whole_layers(dropped_layers(masks), "seap pack")
    refuse_gone(masks)
    if pruned.config.vocab_size < dense.config.vocab_size:
        raise UserError(
            f"the pruned model has {pruned.config.vocab_size} of the dense one's {dense.config.vocab_size} tokens, and "
            "a tokenizer of its own; networks of one model share one: pack the task with --vocabulary, or serve that "
            "folder alone"
        )
    embeddings = (m.get_input_embeddings().weight.cpu() for m in (dense, pruned))
    related = torch.equal(*embeddings)
    weights, biases = dict[str, Tensor](), dict[str, Tensor]()
    for axis in arch.axes:
        mask = axis.kept_of(masks)
        if axis.usage_key:
            own_last = experts_between(arch, cut, axis, mask)
            weights |= {} if own_last is None else {axis.key: own_last}
            continue
        for part in axis.slices:
            linear, own = arch.linear(axis.layer, part.module), cut.linear(axis.layer, part.module)
            kept = linear.weight.cpu().index_select(part.dim, part.indices(mask))
            same = kept.shape == own.weight.shape and torch.equal(kept, own.weight.to(kept).cpu())
            if kept.shape != own.weight.shape or not related:
                raise not_of_this_model(arch, axis, part.module)
            if not same:
                weights[weight_key(axis, part)] = cut.weight(axis.layer, part.module).detach().clone()
            if part.consumer and _other_bias(linear.bias, own.bias):
                biases[axis.key] = own.bias.detach().clone()
    return Network(masks, weights, biases)


def _other_bias(dense: Tensor | None, pruned: Tensor | None) -> bool:
    if pruned is None:
        return False
    return dense is None or not torch.equal(dense.cpu(), pruned.to(dense).cpu())


def free_layers(networks: Mapping[str, Network], num_layers: int) -> int:
    """How many first layers no network changes: they are the same in all of them."""
    changed = (i for i in range(num_layers) if any(network.changes(i) for network in networks.values()))
    return next(changed, num_layers)


def save_network(path: Path, network: Network, about: Mapping[str, Any]) -> None:
    tensors = {f"mask.{key}": mask for key, mask in network.masks.items()}
    tensors |= {f"weight.{key}": weight for key, weight in network.weights.items()}
    tensors |= {f"bias.{key}": bias for key, bias in network.biases.items()}
    tensors |= {f"left.{key}": left for key, left in network.left.items()}
    tensors |= {f"right.{key}": right for key, right in network.right.items()}
    tensors |= {} if network.vocabulary is None else {VOCABULARY: network.vocabulary}
    write_tensors(path, "network", tensors, about)


def load_network(path: Path) -> Network:
    """A network, or a mask without repairs. Weights are read when they are needed, from the file as it is now."""
    file = Opened(path)
    kind, about = file.about()
    if kind == "mask":
        masks, about = load_masks(path)
        return Network(masks, about=about)
    if kind != "network":
        raise UserError(f"{path} holds {kind}; a task's network comes from seap pack, a mask from seap mask")
    masks = {key: mask.clone() for key, mask in Stored(file, "mask.").items()}
    check_masks(path, masks)
    weights, biases, left, right = (Stored(file, prefix) for prefix in ("weight.", "bias.", "left.", "right."))
    tokens = file.read(VOCABULARY).clone() if VOCABULARY in file.names else None
    return Network(masks, weights, biases, left, right, tokens, about)


def load_networks(source: Path, model: Any) -> dict[str, Network]:
    """Task → network, of a folder of network and mask files named after their tasks. Raises UserError for others."""
    paths = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    if not paths:
        raise UserError(f"{source}: no *.safetensors; give a folder that seap pack filled, or of files of seap mask")
    paths = [path for path in paths if read_about(path)[0] != "router"]
    networks = {path.stem: load_network(path) for path in paths}
    check_same_model(paths, [network.about for network in networks.values()], model)
    arch = describe(model)
    for path, network in zip(paths, networks.values(), strict=True):
        check_network(path, arch, network)
    return networks


def refuse_gone(masks: Masks) -> None:
    """Raise UserError for masks that take whole sub-blocks away, which one model in memory doesn't switch."""
    if key := next((key for key, mask in masks.items() if not mask.any()), None):
        raise UserError(
            f"{key}: nothing of it is kept, and switching one model between tasks takes no whole sub-block out; serve "
            "that checkpoint alone, or prune without --drop"
        )


def check_network(path: Path, arch: Arch, network: Network) -> None:
    """Raise UserError unless every tensor of a network file has the shape that its masks give it in this model."""
    try:
        check_fits(arch, network.masks)
        refuse_whole_layers(dropped_layers(network.masks), "a server")
        refuse_gone(network.masks)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    check_tokens(path, network.vocabulary, arch.model.config.vocab_size)
    whole: dict[str, tuple[int, ...]] = {}
    biases = {a.key: arch.weight(a.layer, a.consumer).shape[:1] for a in arch.axes if not a.usage_key}
    for axis in arch.axes:
        if axis.usage_key:
            whole[axis.key] = (arch.model.config.hidden_size, int(network.masks[axis.key].sum()))
            continue
        for part in axis.slices:
            size = list(arch.weight(axis.layer, part.module).shape)
            size[1 if part.consumer else 0] = part.indices(axis.kept_of(network.masks)).numel()
            whole[weight_key(axis, part)] = tuple(size)
    for kind, expected in (("weight", whole), ("bias", biases)):
        for key, values in (network.weights if kind == "weight" else network.biases).items():
            if key not in expected or tuple(values.shape) != tuple(expected[key]) or not values.is_floating_point():
                raise _misshapen(path, f"{kind}.{key}", values)
    for key in {*network.left, *network.right}:
        pair = [part.get(key) for part in (network.left, network.right)]
        if key not in whole or any(values is None or values.dim() != 2 for values in pair):
            raise UserError(f"{path}: its correction {key} isn't whole; make it again, with seap pack")
        left, right = pair
        assert left is not None and right is not None
        if (left.shape[0], right.shape[1]) != whole[key] or left.shape[1] != right.shape[0]:
            raise _misshapen(path, f"left.{key}", left)


def check_tokens(path: Path, tokens: Tensor | None, size: int) -> None:
    """Raise UserError unless they are ids of a vocabulary of this size, ascending, each once."""
    if tokens is None:
        return
    plain = tokens.dtype == torch.int64 and tokens.dim() == 1 and tokens.numel() > 0
    if not plain or not 0 <= int(tokens[0]) <= int(tokens[-1]) < size or bool((tokens.diff() <= 0).any()):
        raise _misshapen(path, VOCABULARY, tokens)


def _misshapen(path: Path, name: str, values: Tensor) -> UserError:
    shape = tuple(values.shape)
    return UserError(f"{path}: {name} has type {values.dtype} and shape {shape}; make it again, with seap pack")


def unrepaired(networks: Mapping[str, Network]) -> list[str]:
    """The masks among them whose method reconstructs, and which run without that here."""
    kinds = {name: network.about.get("options", {}).get("compensate", "none") for name, network in networks.items()}
    plain = [name for name, net in networks.items() if not (net.weights or net.biases or net.left)]
    return [name for name in plain if kinds[name] != "none"]


def load_pruned(name: str, dense: Any) -> tuple[Any, Masks, Mapping[str, Any]]:
    """A pruned checkpoint, its masks and their metadata."""
    dtype: Any = str(next(dense.parameters()).dtype).removeprefix("torch.")
    pruned, _ = load(name, dtype=dtype, device="cpu")
    found = previous(name, pruned)
    if found is None:
        raise UserError(f"{name} has no {MASK_FILE}: not a pruned checkpoint of seap's")
    return pruned, *found


def weights_at_work(arch: Arch, masks: Masks) -> float:
    """The share of the prunable parameters that a network uses."""
    return 1 - realised_sparsity(arch, masks)


def layer_shares(arch: Arch, masks: Masks) -> list[dict[str, float]]:
    """Per layer, the share of each axis's units at work."""
    shares: list[dict[str, float]] = [{} for _ in arch.layers]
    for axis in arch.axes:
        shares[axis.layer][axis.name] = float(axis.mask_of(masks).float().mean())
    return shares
