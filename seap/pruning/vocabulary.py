"""The vocabulary goes first: all that follows is measured, refitted and run with the tokens that stay."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from seap.activations.calibration import fingerprint
from seap.activations.ranks import Ranks
from seap.errors import UserError
from seap.files import digest
from seap.models.residency import streamed
from seap.pruning.jointly import choose_together, looked_at, weighs
from seap.pruning.report import Report, Run, Size
from seap.pruning.texts import Tasks, items_of
from seap.text.options import Calibration
from seap.vocabulary.choosing import Choice, Pick, choose, cut
from seap.vocabulary.options import Vocabulary

NEEDS_TEXT = "which tokens a task needs is seen from its texts"


def check_whole_first(model: Any, run: Run, ranks: Ranks) -> None:
    """Raise UserError where the vocabulary is to be cut, and something stands on the whole one already."""
    asked = f"--vocabulary {run.vocabulary.vocabulary}"
    if not run.vocabulary.is_cut:
        return
    if run.statistics:
        raise UserError(
            f"{asked}: the statistics were measured with the whole vocabulary; leave them out (--stats), so that they "
            "are measured with the tokens that stay"
        )
    if ranks.size > 1:
        raise UserError(f"{asked} is chosen by one process; run it without torchrun or --ray, or leave it out")
    if streamed(model) is not None:
        raise UserError(f"{asked} needs the whole model in memory, which --stream doesn't have; leave one of them out")


@contextlib.contextmanager
def vocabulary_cut(
    model: Any,
    tokenizer: Any,
    task: Tasks | None,
    general: str | None,
    run: Run,
    *,
    progress: bool,
    is_masked: bool = False,
) -> Iterator[Callable[[Report], Report]]:
    """Model and tokenizer with the tokens that stay, as they were before if what is inside fails.

    Gives what makes of a report on the layers one on the whole model. is_masked: whether the layers' units are chosen.
    """
    if not run.vocabulary.is_cut:
        yield lambda report: report
        return
    if task is None or tokenizer is None:
        raise UserError(
            f"--vocabulary {run.vocabulary.vocabulary}: {NEEDS_TEXT}: give a tokenizer and a task (NAME or NAME=PATH)"
        )
    size, identity = Size.of(model), fingerprint(model)
    pick = None if is_masked else together(model, tokenizer, task, run, progress=progress)
    how: dict[str, Any] = {"pick": pick, "progress": progress}
    choice, tasks = chosen(model, tokenizer, task, general, run.vocabulary, run.calibration, **how)
    if choice.about["tokens_after"] == choice.about["tokens_before"]:
        why = "no smaller one keeps within --vocabulary-tolerance" if pick is None else "less is lost in the layers"
        run.notes.append(f"the whole vocabulary stays: {why}")
    with cut(model, tokenizer, choice):
        yield lambda report: on_whole(report, size, identity, choice, tasks)


def together(model: Any, tokenizer: Any, task: Tasks, run: Run, *, progress: bool) -> Pick | None:
    """What chooses the vocabulary together with the layers, where a whole model's size or speed is asked and `auto`."""
    if run.vocabulary.vocabulary != "auto" or run.footprint is None:
        return None
    method, footprint = run.pruning.resolved(), run.footprint
    if not weighs(run.pruning):
        run.notes.append(
            f"the vocabulary was chosen by --vocabulary-tolerance alone: --allocate {method.allocate} measures no "
            "damage of layers that it could be weighed against"
        )
        return None
    if run.vocabulary.vocabulary_tolerance != Vocabulary.vocabulary_tolerance:
        run.notes.append("--vocabulary-tolerance has no effect: the vocabulary was chosen together with the layers")
    look = partial(looked_at, model, tokenizer, task, run.pruning, footprint, run.calibration, progress)
    return partial(choose_together, look)


def chosen(
    model: Any,
    tokenizer: Any,
    task: Tasks,
    general: str | None,
    wanted: Vocabulary,
    reading: Calibration,
    *,
    pick: Pick | None = None,
    progress: bool,
) -> tuple[Choice, tuple[str, ...]]:
    """What stays of the vocabulary for these tasks together, and their names. Nothing is changed."""
    texts, _ = items_of(task)
    others = [item for items in items_of(general)[0].values() for item in items] if general else ()
    choice = choose(model, tokenizer, texts, wanted, reading, general=others, pick=pick, progress=progress)
    return choice, tuple(texts)


@dataclass(frozen=True)
class Smaller:
    """A model with fewer tokens beside the whole one, whose other weights it shares, and its tokenizer.

    finished: makes of a report on its layers one on the whole model.
    """

    model: Any
    tokenizer: Any
    finished: Callable[[Report], Report]


def smaller_beside(
    model: Any,
    tokenizer: Any,
    task: Tasks,
    general: str | None,
    wanted: Vocabulary,
    reading: Calibration,
    *,
    progress: bool,
) -> Smaller:
    """Both as they are, and a model that has the tokens of these tasks; the same model where all tokens stay."""
    if not wanted.is_cut:
        return Smaller(model, tokenizer, lambda report: report)
    size, identity = Size.of(model), fingerprint(model)
    choice, tasks = chosen(model, tokenizer, task, general, wanted, reading, progress=progress)
    made, words = copy.deepcopy(model, {id(p): p for p in model.parameters()}), copy.deepcopy(tokenizer)
    with cut(made, words, choice):
        return Smaller(made, words, lambda report: on_whole(report, size, identity, choice, tasks))


def on_whole(report: Report, size: Size, identity: str, choice: Choice, tasks: tuple[str, ...]) -> Report:
    """A report on the layers with the vocabulary in its totals, and apart."""
    per_token = size.embeddings // choice.about["tokens_before"]
    embeddings = per_token * choice.about["tokens_after"]
    layers = size.params - size.embeddings
    told = choice.about | {"params_before": size.embeddings, "params_after": embeddings}
    provenance = report.provenance | {
        "fingerprint": identity,
        "key": digest([report.provenance["key"], identity, choice.about["asked"], list(choice.kept)]),
    }
    return replace(
        report,
        tasks=report.tasks or tasks,
        params_before=size.params,
        total_sparsity=1 - report.params_after / size.params,
        non_embedding_sparsity=1 - (report.params_after - embeddings) / layers,
        notes=(*report.notes, *choice.notes),
        vocabulary=told,
        provenance=provenance,
    )
