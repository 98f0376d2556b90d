"""The router: which task a prompt is of, from features that cost next to nothing, and how sure it is.

Features (SEAP, section 3.4, takes the first): the mean over a prompt's tokens of their input embeddings, and of the
dense model's hidden states after its first layers; where no network changes those, they are the same in all of them.
A linear model gives each task a probability; the largest is the confidence. A linear model is as sure of text unlike
all that it has seen, so the distance to the nearest task's prompts counts too: a prompt goes to no task (it abstains)
where the confidence is below `threshold` or the distance above `limit`. A mean over few tokens scatters more than one
over many, so distances are measured against what a prompt's length lets expect. Reading and using a router needs torch
alone.

Shapes: N prompts, T tokens, D hidden size, F features (D, or 2·D with layers), S tasks, R directions of the distance.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seap.activations.calibration import check_same_model
from seap.activations.handed import hidden_of, packed
from seap.activations.layerwise import model_inputs
from seap.errors import UserError
from seap.files import read_tensors, write_tensors
from seap.models.arch import describe
from seap.models.modes import evaluation
from seap.text.corpus import Batch, batches

TENSORS = ("weight", "bias", "mean", "directions", "centres", "scatter")
SETTINGS = ("depth", "threshold", "limit", "max_prompt_tokens")
BATCH_TOKENS = 4096
_READING = threading.Lock()  # a hook on a layer is called for every thread that runs it


@dataclass(frozen=True)
class Features:
    """What is known of prompts: values (N, F) float32, and how many tokens each has (N,)."""

    values: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Tensor) -> "Features":
        return Features(self.values[index], self.lengths[index])

    @classmethod
    def joined(cls, parts: Sequence["Features"]) -> "Features":
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]))


@dataclass(frozen=True)
class Route:
    """Where a prompt goes. task: None where the router abstains; nearest: the task it would be."""

    task: str | None
    nearest: str
    confidence: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class Router:
    """A linear model over features. float32.

    weight (S, F) and bias (S,) give the logits; mean (F,) is taken off the features before directions (F, R), in which
    prompts have unit variance around the centre of their task and kind (as they are, in a chat …): centres (·, R).
    scatter (2,): the squared distance that a prompt of T tokens is expected to have is scatter[0] + scatter[1] / T.
    """

    tasks: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    mean: Tensor
    directions: Tensor
    centres: Tensor
    scatter: Tensor
    depth: int = 0
    threshold: float = 0.0
    limit: float = float("inf")
    max_prompt_tokens: int = 256
    about: Mapping[str, Any] = field(default_factory=dict)

    def probabilities(self, features: Features) -> Tensor:
        """(N, S)."""
        return (features.values @ self.weight.t() + self.bias).softmax(-1)

    def distances(self, features: Features) -> Tensor:
        """(N,): offset from the nearest centre, over what is expected of a known task's prompt of that length."""
        offsets = squared_offsets(features.values, self.mean, self.directions, self.centres)
        return (offsets / (self.scatter[0] + self.scatter[1] / features.lengths)).sqrt()

    def route(self, features: Features) -> list[Route]:
        """One route a prompt."""
        confidence, chosen = self.probabilities(features).max(-1)
        rows = zip(chosen.tolist(), confidence.tolist(), self.distances(features).tolist(), strict=True)
        return [self._route(self.tasks[index], sure, distance) for index, sure, distance in rows]

    def _route(self, nearest: str, confidence: float, distance: float) -> Route:
        known = confidence >= self.threshold and distance <= self.limit
        return Route(nearest if known else None, nearest, confidence, distance)

    def predict(self, model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[Route]:
        """One route a prompt."""
        return self.route(read_features(model, tokenizer, prompts, self.depth, self.max_prompt_tokens))

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name) for name in TENSORS}
        about = {**self.about, "tasks": list(self.tasks)} | {name: getattr(self, name) for name in SETTINGS}
        write_tensors(path, "router", tensors, about)


def squared_offsets(values: Tensor, mean: Tensor, directions: Tensor, centres: Tensor) -> Tensor:
    """(N, F) → (N,): squared distance from the nearest centre, the mean over the directions."""
    return torch.cdist((values - mean) @ directions, centres).min(-1).values.square() / directions.shape[1]


def load_router(path: Path, model: Any = None) -> Router:
    """Read a router. Raises UserError for a file that isn't one, or one of another model than the given."""
    tensors, about = read_tensors(path, "router")
    check_tensors(path, tensors, len(about["tasks"]))
    if model is not None:
        check_same_model([path], [about], model)
        width, layers = model.get_input_embeddings().weight.shape[1], len(describe(model).layers)
        if about["depth"] > layers or tensors["mean"].shape[0] != width * (2 if about["depth"] else 1):
            raise UserError(f"{path}: its features aren't the model's; fit it again (seap route fit)")
    stored: dict[str, Any] = {name: tensors[name] for name in TENSORS} | {name: about[name] for name in SETTINGS}
    if stored["limit"] is None:  # infinite, which JSON can't say
        stored["limit"] = float("inf")
    return Router(tasks=tuple(about["tasks"]), about=about, **stored)


def check_tensors(path: Path, tensors: Mapping[str, Tensor], num_tasks: int) -> None:
    """Raise UserError unless a router's tensors are all there, float32, finite, and of shapes that agree."""
    if missing := set(TENSORS) - tensors.keys():
        raise UserError(f"{path} has no {missing.pop()}: an older seap made it; fit it again (seap route fit)")
    shapes = {name: tuple(tensors[name].shape) for name in TENSORS}
    features = shapes["mean"][0] if len(shapes["mean"]) == 1 else 0
    inner = shapes["directions"][1] if len(shapes["directions"]) == 2 else 0
    centres = shapes["centres"][0] if len(shapes["centres"]) == 2 else 0
    expected = {"weight": (num_tasks, features), "bias": (num_tasks,), "mean": (features,), "scatter": (2,)}
    expected |= {"directions": (features, inner), "centres": (centres, inner)}
    for name, shape in expected.items():
        values = tensors[name]
        sound = shapes[name] == shape and 0 not in shape and values.dtype == torch.float32
        if not sound or not bool(torch.isfinite(values).all()):
            raise UserError(
                f"{path}: {name} has type {values.dtype} and shape {shapes[name]}, or isn't finite, for {num_tasks} "
                "tasks; fit it again (seap route fit)"
            )


def read_features(model: Any, tokenizer: Any, prompts: Sequence[str], depth: int, max_tokens: int) -> Features:
    """Features of prompts; a prompt without a token is read as the token that begins or ends texts.

    Raises UserError for a token that the model has no embedding of: on a GPU reading it would end the process.
    """
    max_tokens = min(max_tokens, getattr(model.config, "max_position_embeddings", None) or max_tokens)
    empty = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = [tokenizer(prompt, verbose=False)["input_ids"][:max_tokens] for prompt in prompts]
    size = model.get_input_embeddings().weight.shape[0]
    if beyond := {token for ids in encoded for token in ids if token >= size}:
        first = min(beyond)
        raise UserError(
            f"a prompt has token {first} ({tokenizer.decode([first])!r}), the model's embedding {size} tokens; "
            "take it out of the text"
        )
    return features_of(model, [ids or [empty or 0] for ids in encoded], depth)


def features_of(model: Any, rows: Sequence[Sequence[int]], depth: int) -> Features:
    """Features of token rows, on the CPU; depth: how many layers to run. Threads that call it take turns."""
    arch = describe(model)
    if depth > len(arch.layers):
        raise UserError(f"depth {depth}: the model has {len(arch.layers)} layers")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    found: list[Tensor] = []
    with _READING, evaluation(model):
        for batch in batches([rows[i] for i in order], batch_tokens=BATCH_TOKENS):
            parts = [_embedded(model, batch)]
            parts += [_after_layers(arch.layers[depth - 1], model, batch)] if depth else []
            found += torch.cat([_mean(part, batch) for part in parts], -1)
    places = {row: place for place, row in enumerate(order)}
    values = torch.stack([found[places[row]] for row in range(len(rows))])
    return Features(values, torch.tensor([float(len(row)) for row in rows]))


def _mean(states: Tensor, batch: Batch) -> Tensor:
    """(B, T, D) → (B, D) over the real tokens."""
    mask = batch.mask.to(states.device).unsqueeze(-1)
    return ((states.float() * mask).sum(1) / mask.sum(1)).cpu()


def _embedded(model: Any, batch: Batch) -> Tensor:
    embedding = model.get_input_embeddings()
    states: Tensor = embedding(batch.ids.to(embedding.weight.device))
    return states


class _ReachedError(Exception):
    """Raised inside the model to leave it after the layers that were wanted."""


def _after_layers(layer: nn.Module, model: Any, batch: Batch) -> Tensor:
    found: list[Tensor] = []
    arch = describe(model)

    def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.append(hidden_of(arch, packed(arch, output, kwargs)))
        raise _ReachedError

    handle = layer.register_forward_hook(leave, with_kwargs=True)
    try:
        model.base_model(**model_inputs(arch, batch))
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0]
