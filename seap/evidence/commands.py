"""Pruning to a promise and analysis over files: what can be refused is refused before a model is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.activations.ranks import Ranks
from seap.disk.claim import claimed
from seap.errors import UserError
from seap.evaluation.options import Evaluation
from seap.evidence.options import Promise
from seap.evidence.promised import check_vocabulary, load_tests, prune_to_promise
from seap.files import write_json
from seap.models import loader
from seap.models.options import Streaming
from seap.pruning.commands import prune_to_folder
from seap.pruning.report import Report
from seap.text.options import Calibration
from seap.text.sources import sources_of
from seap.vocabulary.options import vocabulary_of


def promise_to_folder(
    name: str,
    out: Path,
    promise: Promise,
    evaluation: Evaluation,
    *,
    tasks: Sequence[str],
    mask_file: Path | None = None,
    mix: float | str = 0.0,
    streaming: Streaming = Streaming(),  # noqa: B008
    **given: Any,
) -> Report:
    """`seap prune --max-loss` and its like: `prune_to_folder` with the sparsity that is found on held-out text.

    given: the other arguments of `prune_to_folder`. Raises UserError also for what a promise can't be combined with.
    """
    check_vocabulary(promise, vocabulary_of(given)[0])
    check_promisable(mix, mask_file, streaming)
    load_tests(tasks, promise, evaluation)

    def prune(model: Any, tokenizer: Any, *, masks: None, sparsity: Any = None, **options: Any) -> Report:
        return prune_to_promise(model, tokenizer, promise=promise, evaluation=evaluation, **options)

    return prune_to_folder(name, out, tasks=tasks, streaming=streaming, prune=prune, least=0.0, **given)


def check_promisable(mix: float | str, mask_file: Path | None, streaming: Streaming) -> None:
    """Refuse what a promise can't be combined with."""
    if mix:
        raise UserError("--mix can't be combined with a promise yet; give a --sparsity, or leave --mix out")
    if mask_file:
        raise UserError("--mask-file has its sparsity already, so no promise can choose it; leave one of them out")
    if Ranks.here().size > 1:
        raise UserError("a promise is kept by one process; give a --sparsity under torchrun")
    if streaming.stream:
        raise UserError("a promise is measured with the whole model in memory; give a --sparsity with --stream")


def analyze_tasks(
    name: str,
    tasks: Sequence[str],
    out: Path,
    calibration: Calibration,
    *,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """`seap analyze`: hidden states, activations, overlap and stability of masks, in one result file."""
    from seap.evidence.analyze import analyze, check_specs

    check_specs(tasks)
    with claimed(out, "analyze", overwrite=overwrite, inputs=sources_of(name, tasks)):
        model, tokenizer = loader.load_for_work(name, **(loading or {}))
        result = analyze(model, tokenizer, list(tasks), calibration=calibration, progress=progress, **options)
        write_json(out, result)
    return result
