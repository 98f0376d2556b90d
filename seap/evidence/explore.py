"""Which query heads, MLP channels and experts each task uses, and which texts use one of them most.

A part's use by a token is its share of what the layer writes there: ‖W[:,i] h_i‖² over the sum of that of all parts, so
that every token weighs the same and the shares of a layer's parts add up to 1. One pass over the text; of every part
only the texts that use it most are kept, whatever the number of texts. Behind `seap explore`.
Shapes: B rows, T tokens, C inputs of a consumer, U parts of a layer, S tasks, k texts kept of a part.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from seap.activations.layerwise import Walk, model_inputs
from seap.activations.recording import not_finite
from seap.environment import provenance, versions
from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import CHANNELS, EXPERTS, QUERY_HEADS, Axis
from seap.models.experts import Routed
from seap.models.loader import name_of
from seap.models.modes import evaluation
from seap.models.residency import resident, streamed
from seap.models.shelf import offloading
from seap.pruning.texts import Tasks, build_corpora
from seap.text.corpus import Batch, Corpus, batches, num_batches
from seap.text.options import Calibration

CUT = "\N{REPLACEMENT CHARACTER}"  # in place of a character that lacks tokens
SNIPPET = 14  # tokens before the one that uses a part most, and behind it


@dataclass
class Uses:
    """How the parts of one layer are used: `total` (S, U) is summed over tokens, the others are of k texts by part."""

    total: Tensor
    value: Tensor  # float32 (k, U): the mean share over a text's tokens, the largest first; −1 where there are fewer
    text: Tensor  # int64 (k, U)
    place: Tensor  # int64 (k, U): the token of the text that uses the part most
    tokens: list[int] = field(default_factory=list)  # of each task, those that count

    @classmethod
    def nothing(cls, parts: int, *, num_tasks: int, num_kept: int) -> "Uses":
        places = torch.zeros(num_kept, parts, dtype=torch.long)
        total = torch.zeros(num_tasks, parts, dtype=torch.float64)
        return cls(total, torch.full((num_kept, parts), -1.0), places, places.clone(), [0] * num_tasks)

    def update_(self, task: int, texts: Tensor, shares: Tensor, counted: Tensor) -> None:
        """Take in a batch of a task's texts, int64 (B,). shares: (B, T, U), counted: bool (B, T)."""
        shares = shares.masked_fill(~counted[:, :, None], 0.0)
        self.total[task] += shares.sum((0, 1), dtype=torch.float64).cpu()
        self.tokens[task] += int(counted.sum())
        mean = (shares.sum(1) / counted.sum(1, keepdim=True)).cpu()  # (B, U)
        value = torch.cat([self.value, mean])
        text = torch.cat([self.text, texts[:, None].expand_as(mean)])
        place = torch.cat([self.place, shares.max(1).indices.cpu()])
        self.value, best = value.topk(len(self.value), dim=0)
        self.text, self.place = text.gather(0, best), place.gather(0, best)

    @property
    def mean(self) -> Tensor:
        """(S, U): each task's mean share of every part."""
        return self.total / torch.tensor(self.tokens, dtype=torch.float64)[:, None].clamp_min(1)


def explore(
    model: Any,
    tokenizer: Any,
    tasks: Tasks,
    *,
    num_units: int = 48,
    num_kept: int = 5,
    calibration: Calibration = Calibration(),  # noqa: B008
    progress: bool = True,
) -> dict[str, Any]:
    """What each task uses of a model, layer by layer: plain values, for the page of `seap explore`.

    num_units: channels of a layer that are told of (all heads and experts are): half of them those that a task uses
    most, half those in which tasks differ most. num_kept: texts of each. Raises UserError for numbers below 1.
    """
    for name, number in (("--num-units", num_units), ("--num-kept", num_kept)):
        if number < 1:
            raise UserError(f"{name} {number}: must be at least 1")
    arch, corpora = describe(model), build_corpora(model, tokenizer, tasks, calibration)
    found = measure(arch, corpora, num_kept=num_kept, batch_tokens=calibration.batch_tokens, progress=progress)
    kinds = [name for name in MAPS if any(one.name == name for one in found)]
    rows = [row for corpus in corpora.values() for row in corpus.rows]
    return {
        "kind": "explore",
        "model": name_of(model) or "unnamed",
        "family": arch.family.model_type,
        "tasks": list(corpora),
        "num_texts": [len(corpus.rows) for corpus in corpora.values()],
        "num_tokens": [corpus.num_counted for corpus in corpora.values()],
        "text_tasks": [task for task, corpus in enumerate(corpora.values()) for _ in corpus.rows],
        "maps": [_map(name, found, num_units, rows, tokenizer) for name in kinds],
        **provenance(),
        "versions": versions(),
    }


MAPS = (QUERY_HEADS, CHANNELS, EXPERTS)  # in the order in which they are shown
Weigh = Callable[[Tensor], Tensor]  # what a consumer reads (N, C) → how much of it each part makes it write (N, U)
Take = Callable[[Tensor], None]  # shares (B, T, U) of one batch


@dataclass(frozen=True)
class Watched:
    """The parts of one layer, how they are weighed, and what was seen of them."""

    axis: Axis
    name: str
    uses: Uses
    weigh: Weigh | None  # None for experts, which come weighed


def measure(
    arch: Arch, corpora: Mapping[str, Corpus], *, num_kept: int, batch_tokens: int, progress: bool = True
) -> list[Watched]:
    """One pass over all corpora, of a streamed model layer by layer. Texts are numbered through, task after task."""
    kept = min(num_kept, sum(len(corpus.rows) for corpus in corpora.values()))
    if streamed(arch.model) is not None:
        return _by_layer(arch, list(corpora.values()), kept, batch_tokens, progress=progress)
    total = sum(num_batches(corpus.rows, batch_tokens=batch_tokens) for corpus in corpora.values())
    start = 0
    with evaluation(arch.model), tqdm(total=total, desc="explore", unit="batch", disable=not progress) as bar:
        found = [_watched(arch, axis, len(corpora), kept) for axis in arch.axes]
        for task, corpus in enumerate(corpora.values()):
            for batch, texts in _numbered(corpus, batches(corpus.rows, batch_tokens=batch_tokens), start):
                with _watching(arch, found, task, texts, batch):
                    arch.model.base_model(**model_inputs(arch, batch))
                bar.update()
            start += len(corpus.rows)
    _check_finite(found)
    return found


def _numbered(corpus: Corpus, made: Iterable[Batch], start: int) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of a corpus with the numbers of their texts, the first of which is `start`."""
    order = iter(sorted(range(len(corpus.rows)), key=lambda i: -len(corpus.rows[i])))  # in which `batches` has them
    for batch in made:
        yield batch, torch.tensor([start + next(order) for _ in batch.ids])


def _by_layer(arch: Arch, corpora: Sequence[Corpus], kept: int, batch_tokens: int, *, progress: bool) -> list[Watched]:
    """As `measure`, every corpus through one layer before the next one."""
    found, starts = list[Watched](), [sum(len(other.rows) for other in corpora[:task]) for task in range(len(corpora))]
    with evaluation(arch.model), offloading(arch.model) as offload:
        walks = [Walk.start(arch, corpus.rows, batch_tokens=batch_tokens, apart=False) for corpus in corpora]
        texts = [[*_numbered(c, w.batches, start)] for c, w, start in zip(corpora, walks, starts, strict=True)]
        number = max(len(walk.batches) for walk in walks)
        for layer in tqdm(range(len(arch.layers)), desc="explore", unit="layer", disable=not progress):
            with resident(arch, layer):
                own = [_watched(arch, axis, len(corpora), kept) for axis in arch.layer_axes(layer)]
                for task, walk in enumerate(walks):
                    for index, (batch, numbers) in enumerate(texts[task]):
                        with _watching(arch, own, task, numbers, batch):
                            walk.hidden[index] = offload(task * number + index, walk.run(layer, index))
            found += own
    _check_finite(found)
    return found


def _watched(arch: Arch, axis: Axis, num_tasks: int, num_kept: int) -> Watched:
    if axis.usage_key:
        return Watched(axis, EXPERTS, Uses.nothing(axis.experts, num_tasks=num_tasks, num_kept=num_kept), None)
    parts = axis.units * axis.queries
    weight = arch.weight(axis.layer, axis.consumer).float()  # (O, C)
    uses = Uses.nothing(parts, num_tasks=num_tasks, num_kept=num_kept)
    if axis.name == CHANNELS:
        return Watched(axis, CHANNELS, uses, _by_column(weight.square().sum(0)))
    each = weight.unflatten(1, (parts, -1))
    return Watched(axis, QUERY_HEADS, uses, _by_head(torch.einsum("ouk,oul->ukl", each, each)))


def _by_column(norms: Tensor) -> Weigh:
    """norms: ‖W[:,i]‖² (C,)."""
    return lambda inputs: inputs.square() * norms


def _by_head(grams: Tensor) -> Weigh:
    """grams: W_uᵀ W_u (U, C/U, C/U), so that hᵀ W_uᵀ W_u h is ‖W_u h‖²."""

    def weigh(inputs: Tensor) -> Tensor:
        heads = inputs.unflatten(1, (len(grams), -1))
        return (torch.einsum("nuk,ukl->nul", heads, grams) * heads).sum(-1).clamp_min(0)

    return weigh


@contextlib.contextmanager
def _watching(arch: Arch, found: Sequence[Watched], task: int, texts: Tensor, batch: Batch) -> Iterator[None]:
    """Takes in what every layer does with one batch."""

    def taking(one: Watched) -> Take:
        def take(written: Tensor) -> None:
            shares = written / written.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            counted = batch.counted.to(shares.device)
            one.uses.update_(task, texts, shares.view(*counted.shape, -1), counted)

        return take

    with contextlib.ExitStack() as stack:
        for one in found:
            if one.weigh is None:
                stack.enter_context(arch.experts_of(one.axis).watched(_of_experts(one.axis.experts, taking(one))))
            else:
                handle = arch.consumer(one.axis).register_forward_pre_hook(_of_linear(one.weigh, taking(one)))
                stack.callback(handle.remove)
        yield


def _of_linear(weigh: Weigh, take: Take) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: take(weigh(inputs[0].detach().flatten(0, -2).float()))


def _of_experts(num_experts: int, take: Take) -> Callable[[int, list[Routed]], None]:
    def record(num_tokens: int, seen: list[Routed]) -> None:
        written = torch.zeros(num_tokens, num_experts, device=seen[0].strength.device if seen else None)
        for one in seen:
            written[one.tokens, one.expert] = one.strength.square()
        take(written)

    return record


def _check_finite(found: Sequence[Watched]) -> None:
    for one in found:
        if not bool(one.uses.total.isfinite().all()):
            raise not_finite(one.axis)


def _map(name: str, found: Sequence[Watched], num_units: int, rows: Sequence[Sequence[int]], tokenizer: Any) -> Any:
    """One kind of part in all layers that have it."""
    own = [one for one in found if one.name == name]
    return {"parts": name, "layers": [_layer(one, num_units, rows, tokenizer) for one in own]}


def _layer(one: Watched, num_units: int, rows: Sequence[Sequence[int]], tokenizer: Any) -> dict[str, Any]:
    mean = one.uses.mean
    chosen = telling(mean, num_units) if one.name == CHANNELS else list(range(mean.shape[1]))
    return {
        "layer": one.axis.layer,
        "num_parts": mean.shape[1],
        "queries": one.axis.queries,
        "apart": _rounded(torch.cdist(mean, mean, p=1) / 2),  # share of the one's use that the other puts elsewhere
        "covered": _rounded(mean[:, chosen].sum(1)),
        "parts": [_part(one.uses, part, rows, tokenizer) for part in chosen],
    }


def telling(mean: Tensor, num_units: int) -> list[int]:
    """Of mean shares (S, U) the parts to tell of: half that a task uses most, half in which tasks differ most.

    In the order of the task that uses each most, and within it of how much.
    """
    most, differ = mean.amax(0), mean.amax(0) - mean.amin(0)
    chosen = set(most.topk(min(-(-num_units // 2) if len(mean) > 1 else num_units, len(most))).indices.tolist())
    for part in differ.argsort(descending=True, stable=True).tolist():
        if len(chosen) >= min(num_units, len(most)):
            break
        chosen.add(part)
    return sorted(chosen, key=lambda part: (int(mean[:, part].argmax()), -float(most[part])))


def _part(uses: Uses, part: int, rows: Sequence[Sequence[int]], tokenizer: Any) -> dict[str, Any]:
    kept = zip(*(values[:, part].tolist() for values in (uses.value, uses.text, uses.place)), strict=True)
    texts = [
        {"text": text, "use": round(value, 5), "words": snippet(tokenizer, rows[text], place)}
        for value, text, place in kept
        if value > 0
    ]
    return {"part": part, "use": [round(value, 6) for value in uses.mean[:, part].tolist()], "texts": texts}


def snippet(tokenizer: Any, row: Sequence[int], place: int) -> list[str]:
    """What stands before a token of a row, the token, and what stands behind it."""
    start, end = max(0, place - SNIPPET), place + SNIPPET + 1
    begins = place > 0 == start and row[0] == tokenizer.bos_token_id  # as every text does
    first = start + begins

    def told(end: int) -> str:
        text: str = tokenizer.decode(list(row[first:end]), clean_up_tokenization_spaces=False)
        return text

    whole = told(end)
    upto = next((text for i in range(1, 5) if not (text := told(place + i)).endswith(CUT)), told(place + 1))
    upto = _in_common(upto, whole)
    before = _in_common(told(place), upto)
    behind = whole[len(upto) :] + (" …" if end < len(row) else "")
    return [("… " if start else "") + before, upto[len(before) :], behind]


def _in_common(beginning: str, text: str) -> str:
    """A beginning of a text as far as it is one: the last character may lack tokens."""
    length = next((i for i, (a, b) in enumerate(zip(beginning, text, strict=False)) if a != b), len(beginning))
    return beginning[:length]


def _rounded(values: Tensor) -> Any:
    return [_rounded(value) for value in values] if values.dim() > 1 else [round(v, 4) for v in values.tolist()]
