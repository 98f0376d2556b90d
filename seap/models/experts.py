"""The experts of one layer: small MLPs whose weights are fused in tensors of E, and the router that chooses among them.

What a layer of experts adds to the residual stream is Σ_e p_e · W_e h_e, with p_e the router's weight of expert e for
the token (0 where it isn't chosen), h_e what the expert's last linear reads and W_e that linear. Seen as one linear
[W_1 … W_E] that reads (p_1 h_1, …, p_E h_E) it is like the consumer of any axis: so it is measured and scored.
Shapes: N tokens, D hidden size, E experts, U channels of each, w of them kept, n experts kept, k experts per token.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A unit's place in a weight: the dimension that is cut, and the units' sizes in each block of it.

    A fused qkv of G groups is a block of G·(Q·K) rows, one of G·K and one of G·K, so (Q·K, K, K); gates before ups are
    (1, 1), each gate with its up after it is (2,).
    """

    dim: int
    sections: tuple[int, ...] = (1,)

    def indices(self, keep: Tensor) -> Tensor:
        """Where the kept units lie along `dim`. keep: bool (units,) → int64 (kept rows,); or a permutation (units,)."""
        units = keep.numel()
        parts, start = [], 0
        for size in self.sections:
            block = torch.arange(start, start + units * size, device=keep.device).view(units, size)
            parts.append(block[keep].flatten())
            start += units * size
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a family's layers lay out their experts. Paths are relative to the decoder layer."""

    block: str  # the module whose output goes to the residual stream
    module: str  # the module that runs the experts: forward(hidden, chosen experts, their weights)
    router: str
    up: str  # (E, 2U, D), or (E, D, 2U) where transposed
    down: str  # (E, D, U), or (E, U, D) where transposed
    up_bias: str = ""
    down_bias: str = ""
    by_channel: Mapping[str, Cut]  # every parameter that goes with a channel
    by_expert: tuple[str, ...]  # the other parameters with a row for each expert, the router's among them
    transposed: bool = False
    chooses: str = ""  # the module whose top_k says how many are chosen for a token; the router with an empty one
    top_k: str = "top_k"  # where that number is in it
    groups: str = ""  # the router's attribute of how many groups of experts it chooses among first
    layers_of: tuple[str, str] | None = None  # config entry with each layer's kind, and the kind that has experts
    switch: str = ""  # the config entry without which there are none, whatever their number
    count_keys: tuple[str, ...]  # the config keys of the number of experts; the first one is written
    channels_key: str
    shared: Mapping[str, str]  # the linears of an expert that every token goes through, as in `Family.mlp`
    shared_consumer: str = ""
    shared_key: str = ""
    # whether `shared_key` is ours: the family's class makes that one as wide as some experts, and its linears are made
    # anew in their own width
    resizes_shared: bool = False

    @property
    def resized(self) -> dict[str, dict[str, str]]:
        """Config key → path of a linear that has its width → on which side; none where the family's class knows it."""
        if not self.resizes_shared:
            return {}
        return {self.shared_key: {**dict.fromkeys(self.shared, "out_features"), self.shared_consumer: "in_features"}}


@dataclass(frozen=True)
class Routed:
    """What one expert did for the tokens that were routed to it."""

    expert: int
    tokens: Tensor  # int64 (n,)
    inputs: Tensor  # (n, U): what its last linear reads, times the router's weight
    strength: Tensor  # (n,): the norm of its output, times the router's weight


Watch = Callable[[int, list[Routed]], None]  # number of tokens, what each chosen expert did


@dataclass(frozen=True)
class Experts:
    """The experts of a layer, seen through their layout. Copies nothing."""

    layer: nn.Module
    layout: Layout

    def __getitem__(self, path: str) -> Tensor:
        """A parameter, or a buffer such as a router's corrections."""
        owner, _, name = path.rpartition(".")
        found: Tensor = getattr(self.layer.get_submodule(owner), name)
        return found

    @property
    def module(self) -> Any:
        return self.layer.get_submodule(self.layout.module)

    @property
    def per_token(self) -> int:
        """How many experts the router chooses for a token."""
        found: Any = self.layer.get_submodule(self.layout.chooses or self.layout.router)
        for name in self.layout.top_k.split("."):
            found = getattr(found, name)
        return int(found)

    @property
    def groups(self) -> int:
        """Into how many groups the router divides the experts; 0 where it doesn't know such."""
        router: Any = self.layer.get_submodule(self.layout.router)
        return int(getattr(router, self.layout.groups) or 1) if self.layout.groups else 0

    @property
    def least(self) -> int:
        """How many experts the router needs: those of a token, and of a group the two that it is valued by.

        All of them where there are several groups, which must stay equally large.
        """
        if self.groups > 1:
            return self.num_experts
        return max(self.per_token, 2 if self.groups else 1)

    @property
    def num_experts(self) -> int:
        return len(self[self.layout.down])

    @property
    def num_channels(self) -> int:
        return self[self.layout.down].shape[1 if self.layout.transposed else 2]

    @property
    def channel_params(self) -> int:
        """Parameters that go with one channel of one expert: gate, up (and their biases) and down."""
        names = [self.layout.up, self.layout.down, *([self.layout.up_bias] if self.layout.up_bias else [])]
        return sum(self[name][0].numel() for name in names) // self.num_channels

    @property
    def by_expert(self) -> list[str]:
        """The parameters with a row for each expert that this model has: an option may switch one off."""
        places = [(path, *path.rpartition(".")[::2]) for path in self.layout.by_expert]
        return [path for path, owner, name in places if hasattr(self.layer.get_submodule(owner), name)]

    @property
    def paths(self) -> list[str]:
        """Every parameter that a cut changes."""
        return [*self.layout.by_channel, *self.by_expert]

    @property
    def weights(self) -> list[Tensor]:
        return [self[path] for path in self.paths]

    def matrix(self, name: str, expert: int) -> Tensor:
        """An expert's linear as (outputs, inputs)."""
        weight = self[name][expert]
        return weight.t() if self.layout.transposed else weight

    def consumer_weight(self) -> Tensor:
        """(D, E·U): all experts' last linears side by side. A copy."""
        return torch.cat([self.matrix(self.layout.down, expert) for expert in range(self.num_experts)], 1)

    def run(self, hidden: Tensor, chosen: Tensor, weights: Tensor, watch: Watch) -> Tensor:
        """What the module's forward returns, one expert after the other, with `watch` told of each.

        hidden (N, D), chosen int64 (N, k), weights (N, k) → (N, D).
        """
        layout, output, seen = self.layout, torch.zeros_like(hidden), []
        for expert in chosen.unique().tolist():
            tokens, places = torch.where(chosen == expert)
            bias = self[layout.up_bias][expert] if layout.up_bias else None
            inner = self._activated(linear(hidden[tokens], self.matrix(layout.up, expert), bias))
            bias = self[layout.down_bias][expert] if layout.down_bias else None
            own = linear(inner, self.matrix(layout.down, expert), bias)
            share = weights[tokens, places, None]
            output.index_add_(0, tokens, (own * share).to(output.dtype))
            strength = own.float().norm(dim=1) * share.float().flatten()
            seen.append(Routed(expert, tokens, inner.float() * share.float(), strength))
        watch(len(hidden), seen)
        return output

    def _activated(self, values: Tensor) -> Tensor:
        module = self.module
        found: Tensor = module._apply_gate(values) if module.has_gate else module.act_fn(values)
        return found

    @contextlib.contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Tell `watch` of every forward pass for a while."""
        own = vars(self.module).get("forward")  # there where accelerate has dispatched the model
        self.module.forward = lambda hidden, chosen, weights: self.run(hidden, chosen, weights, watch)
        try:
            yield
        finally:
            del self.module.forward
            if own is not None:
                self.module.forward = own

    def cut(self, keep: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """The parameters of what is kept, by path.

        keep: bool (E·U,), as many channels in every expert that keeps any; an expert that keeps none goes. weight
        (D, n·w): in place of the kept columns of the last linears.
        """
        chosen = keep.view(self.num_experts, self.num_channels)
        experts = chosen.any(1).nonzero().flatten().tolist()
        new = {path: self[path][experts] for path in self.by_expert}
        for path, cut in self.layout.by_channel.items():
            old = self[path]
            rows = {expert: cut.indices(chosen[expert]).to(old.device) for expert in experts}
            new[path] = torch.stack([old[expert].index_select(cut.dim, rows[expert]) for expert in experts])
        if weight is not None:
            parts = weight.to(new[self.layout.down]).chunk(len(experts), 1)
            new[self.layout.down] = torch.stack([part.t() if self.layout.transposed else part for part in parts])
        return new

    def replace_(self, new: Mapping[str, Tensor]) -> None:
        """Set parameters by path, and the number of experts that the module and the router go by."""
        for path, value in new.items():
            owner, _, name = path.rpartition(".")
            old, module = self[path], self.layer.get_submodule(owner)
            is_buffer = name in module._buffers
            setattr(module, name, value if is_buffer else _parameter(value, old.requires_grad))
        for holder in (self.module, self.layer.get_submodule(self.layout.router)):
            if "num_experts" in vars(holder):
                holder.num_experts = self.num_experts

    @contextlib.contextmanager
    def replaced(self, new: Mapping[str, Tensor]) -> Iterator[None]:
        """Other parameters for a while, of any width."""
        old = {path: self[path] for path in new}
        self.replace_(new)
        try:
            with self.watched(lambda num_tokens, seen: None):
                yield
        finally:
            self.replace_(old)


def _parameter(value: Tensor, requires_grad: bool) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.contiguous(), requires_grad=requires_grad)


def usage_rows(num_tokens: int, num_experts: int, seen: Sequence[Routed]) -> Tensor:
    """(N, 2E) float64: whether each expert was chosen for a token, and with what strength. 0 where it wasn't."""
    rows = torch.zeros(num_tokens, 2, num_experts, dtype=torch.float64)
    for routed in seen:
        rows[routed.tokens.cpu(), 0, routed.expert] = 1
        rows[routed.tokens.cpu(), 1, routed.expert] = routed.strength.detach().cpu().double()
    return rows.flatten(1)
