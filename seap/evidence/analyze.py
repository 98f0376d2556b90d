"""What sets tasks apart inside a model: hidden states and activations per task and layer, and how far masks agree.

Behind `seap analyze`. Shapes: N texts, B rows of a batch, T tokens, D hidden size, L layers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seap.activations.calibration import fingerprint
from seap.activations.layerwise import model_inputs
from seap.activations.moments import Moments
from seap.environment import provenance, versions
from seap.errors import UserError, missing_extra, unknown
from seap.evidence.agreement import (
    Measured,
    axes_by_name,
    enough,
    masks_of_spans,
    measure,
    overlaps,
    realised,
    stabilities,
)
from seap.models.arch import Arch, describe
from seap.models.axes import Axis
from seap.models.loader import name_of
from seap.models.modes import evaluation
from seap.pruning.prune import Tasks, build_corpora, check
from seap.pruning.report import choices
from seap.selection.options import Pruning
from seap.text.corpus import Batch, Corpus, batches
from seap.text.options import Calibration
from seap.text.tasks import load_items

MAX_BINS = 64  # of the activation map, per layer
MEASURE = "root mean square, relative to the layer's mean"

Array = np.ndarray[Any, np.dtype[Any]]


def analyze(
    model: Any,
    tokenizer: Any,
    tasks: Tasks,
    *,
    sparsities: Sequence[float] = (0.2, 0.5),
    method: str = "seap-paper",
    num_states: int = 64,
    embedding: str = "t-SNE",
    calibration: Calibration = Calibration(),  # noqa: B008
    progress: bool = True,
) -> dict[str, Any]:
    """Compare at least two tasks inside one model: plain values, ready for JSON.

    tasks: as in `seap.prune`. method: whose masks; every span of text gets a mask, which `seap` takes its time for.
    num_states: texts per task whose hidden states are looked at. embedding: t-SNE or PCA.

    - `silhouette`: one number per layer, the first after the embedding; `map`: points of the layer where it is best
    - `activation`: per axis, values[task][layer][bin]
    - `overlap`: Jaccard between the tasks' masks
    - `stability`: between the masks of two halves of a task's texts
    - `enough`: between the mask of the first 1, 2, 4 … texts and that of all

    Raises UserError before any pass over text when there are fewer than two tasks or two texts of one, when the method
    looks at no activations, when a sparsity can't be met, and when scikit-learn isn't installed.
    """
    started = time.perf_counter()
    prunings = [Pruning(sparsity=sparsity, method=method) for sparsity in dict.fromkeys(sparsities)]
    notes = check_request(model, tasks, prunings, num_states, embedding)
    corpora = build_corpora(model, tokenizer, tasks, calibration)
    check_texts(corpora)
    arch = describe(model)
    wanted = replace(calibration, second_moments=prunings[0].needs_second_moments)
    measured = measure(model, corpora, wanted, progress=progress)
    table = masks_of_spans(model, measured, prunings[0], [p.sparsity for p in prunings], progress=progress)
    return {
        "kind": "analyze",
        "model": name_of(model) or "unnamed",
        "family": arch.family.model_type,
        "fingerprint": fingerprint(model),
        **hidden_states(model, corpora, num_states, embedding, calibration, progress=progress),
        "activation": activation_maps(arch, measured),
        "overlap": overlaps(table),
        "stability": stabilities(table),
        "enough": enough(table),
        "realised": realised(table),
        **about_texts(corpora),
        "options": {
            "method": method,
            **choices(prunings[0]),
            "sparsities": list(table.sparsities),
            "num_states": num_states,
            "embedding": embedding,
            "calibration": asdict(wanted),
        },
        "notes": notes + [f"{c.name}: {c.skipped} texts were too short" for c in corpora.values() if c.skipped],
        **provenance(),
        "versions": versions() | {"scikit-learn": version("scikit-learn")},
        "seconds": time.perf_counter() - started,
    }


def about_texts(corpora: Mapping[str, Corpus]) -> dict[str, Any]:
    """The tasks, and what text of each was looked at."""
    return {
        "tasks": list(corpora),
        "num_texts": {task: len(corpus.rows) for task, corpus in corpora.items()},
        "num_tokens": {task: corpus.num_tokens for task, corpus in corpora.items()},
        "data_hash": {task: corpus.data_hash for task, corpus in corpora.items()},
        "source": {task: corpus.source for task, corpus in corpora.items()},
    }


def check_request(model: Any, tasks: Tasks, prunings: Sequence[Pruning], num_states: int, embedding: str) -> list[str]:
    """Refuse what can be refused before any text is read; return what the user should know."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise missing_extra("scikit-learn", "eval", "seap analyze") from error
    check_number(1 if isinstance(tasks, str) else len(tasks))
    if not prunings:
        raise UserError("no sparsity to make masks at; name one or more, such as 0.2 and 0.5")
    if not prunings[0].needs_scores_of_activations:
        raise UserError(
            f"method {prunings[0].method} looks at no activations, so every task has the same mask; choose seap"
        )
    if num_states < 2:
        raise UserError(f"--num-states {num_states}: a silhouette needs at least 2 texts per task")
    if embedding not in EMBEDDINGS:
        raise unknown("embedding", embedding, EMBEDDINGS)
    return list(dict.fromkeys(note for pruning in prunings for note in check(model, pruning)))


def check_number(num_tasks: int) -> None:
    if num_tasks < 2:
        raise UserError(f"tasks are compared with each other: got {num_tasks}, name two or more: --tasks A=PATH,B=PATH")


def check_specs(specs: Sequence[str]) -> None:
    """Refuse, before a model is loaded, fewer than two tasks, and a task that can't be read or has one item."""
    check_number(len(specs))
    for spec in specs:
        if len(load_items(spec, "train")) < 2:
            raise UserError(f"task {spec}: its training part has one item; split halves need at least 2")


def check_texts(corpora: Mapping[str, Corpus]) -> None:
    """Raise UserError for a task with nothing to compare its texts with."""
    for name, corpus in corpora.items():
        if len(corpus.rows) < 2:
            raise UserError(
                f"task {name}: got 1 text ({corpus.source}), silhouettes and split halves need at least 2; give more "
                "text, raise --num-texts or --max-tokens, or leave out --pack"
            )


def hidden_states(
    model: Any,
    corpora: Mapping[str, Corpus],
    num_states: int,
    embedding: str,
    options: Calibration,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """`silhouette` of every layer, and the `map` of the layer where it is best."""
    states, labels = [], []
    for name, corpus in tqdm(corpora.items(), desc="hidden states", unit="task", disable=not progress, leave=False):
        rows = corpus.rows[:num_states]
        states.append(mean_states(model, rows, batch_tokens=options.batch_tokens))
        labels += [name] * len(rows)
    every = torch.cat(states)  # (N, L+1, D)
    values = silhouettes(every, labels)
    best = max(range(len(values)), key=values.__getitem__)
    points = embed(every[:, best], embedding, seed=options.seed)
    return {
        "map": {
            "method": embedding,
            "layer": best,
            "points": [{"x": x, "y": y, "task": task} for (x, y), task in zip(points, labels, strict=True)],
        },
        "silhouette": values,
    }


@torch.inference_mode()
def mean_states(model: Any, rows: Sequence[Sequence[int]], *, batch_tokens: int) -> Tensor:
    """Mean hidden state of each row over its real tokens: float32 (N, L+1, D) on the CPU, rows in the order given.

    Index 0 is after the embedding, l after layer l; the last one is after the final norm too, as transformers has it.
    Of models with several hidden states of a token it is of their mean.
    """
    with evaluation(model):
        means = [_batch_means(model, batch) for batch in batches(rows, batch_tokens=batch_tokens)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)  # the order of `batches`
    return torch.cat(means)[torch.tensor(order).argsort()]


def _batch_means(model: Any, batch: Batch) -> Tensor:
    outputs = model.base_model(**model_inputs(describe(model), batch), output_hidden_states=True)
    means = []
    for states in outputs.hidden_states:  # (B, T, D), or (S, B, T, D) of several hidden states of a token (AltUp)
        states = states.float().mean(0) if states.dim() > 3 else states.float()
        real = batch.mask.to(states.device)[:, :, None]
        means.append((states.masked_fill(~real, 0).sum(1) / real.sum(1)).cpu())
    return torch.stack(means, 1)


def standardised(states: Tensor) -> Array:
    """Every dimension at mean 0 and deviation 1 over the texts, a constant one at 0: (N, D) → float64 (N, D).

    Without it the few very large dimensions of a language model decide every distance alone.
    """
    from sklearn.preprocessing import StandardScaler

    scaled: Array = StandardScaler().fit_transform(states.double().numpy())
    return scaled


def silhouettes(states: Tensor, labels: Sequence[str]) -> list[float]:
    """How far apart the tasks lie in each layer (Rousseeuw, 1987): states (N, L+1, D) → L+1 numbers from −1 to 1.

    The mean over texts of (b − a) / max(a, b), a the mean distance to the other texts of the task and b that to the
    texts of the nearest other task: 1 where tasks lie far apart, 0 where they can't be told apart. Distances are
    Euclidean, on standardised states.
    """
    from sklearn.metrics import silhouette_score

    return [float(silhouette_score(standardised(layer), labels)) for layer in states.unbind(1)]


def embed(states: Tensor, kind: str, *, seed: int = 0) -> list[tuple[float, float]]:
    """A map of one layer's states, standardised: (N, D) → N points. All at 0 when all states are equal."""
    if len(states.unique(dim=0)) < 2:
        return [(0.0, 0.0)] * len(states)
    return [(round(float(x), 4), round(float(y), 4)) for x, y in EMBEDDINGS[kind](standardised(states), seed)]


def _tsne(states: Array, seed: int) -> Array:
    """t-SNE (van der Maaten and Hinton, 2008) from the PCA; perplexity 30, or a third of the other texts if fewer."""
    from sklearn.manifold import TSNE

    method = TSNE(perplexity=min(30.0, (len(states) - 1) / 3), init="pca", learning_rate="auto", random_state=seed)
    points: Array = method.fit_transform(states)
    return points


def _pca(states: Array, seed: int) -> Array:
    from sklearn.decomposition import PCA

    points: Array = PCA(2, svd_solver="full", random_state=seed).fit_transform(states)
    return points


EMBEDDINGS: dict[str, Callable[[Array, int], Array]] = {"t-SNE": _tsne, "PCA": _pca}


def activation_maps(arch: Arch, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """How strongly each task uses each part of each axis: values[task][layer][bin], √E[h²] over a bin's inputs.

    Relative to the mean over the layer's bins. Units stand in their order, in at most 64 bins a layer.
    """
    statistics = [found.statistics(found.whole) for found in measured.values()]
    return [
        {
            "axis": name,
            "measure": MEASURE,
            "tasks": list(measured),
            "values": [[binned(axis, part[axis.key]) for axis in axes] for part in statistics],
        }
        for name, axes in axes_by_name(arch)
    ]


def binned(axis: Axis, moments: Moments) -> list[float]:
    """Root mean square of the inputs of each bin of units, relative to its mean over bins (all 0 in a dead layer)."""
    units = moments.mean_square.view(axis.entries, axis.unit_inputs).mean(1)
    bins = torch.stack([part.mean() for part in units.tensor_split(min(axis.entries, MAX_BINS))]).sqrt()
    relative = bins / bins.mean().clamp_min(torch.finfo(torch.float64).tiny)
    return [round(value, 4) for value in relative.tolist()]
