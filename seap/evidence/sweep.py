"""`seap sweep`: the frontier of a model: what every sparsity costs in loss and accuracy, and gains in size and speed.

One calibration for all sparsities. Losses and accuracies are paired with the dense model's text by text, so their
errors are those of the difference. Speed is of models that were really sliced, timed in turn with the dense one.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seap.activations.calibration import fingerprint
from seap.bench.speed import compare_speed
from seap.disk.claim import claimed_results
from seap.environment import provenance
from seap.errors import UserError
from seap.evaluation.evaluate import ACC_NAMES, Exam, Test, load_test, prepare
from seap.evaluation.metrics import ratio_of
from seap.evaluation.options import Evaluation
from seap.evidence.frontier import Frontier
from seap.evidence.heldout import KINDS, Outcome, damage, observe
from seap.evidence.promise import Damage
from seap.evidence.sizes import check_counted, footprint_for, foreseen_for, in_shares
from seap.files import digest, write_json
from seap.models import loader
from seap.models.arch import describe
from seap.models.sizes import dtype_on_disk
from seap.pruning.prune import check
from seap.pruning.report import Report, choices
from seap.pruning.vocabulary import Smaller, smaller_beside
from seap.selection.mixture import check_mixture
from seap.selection.options import Pruning
from seap.text.options import Calibration
from seap.text.sources import sources_of
from seap.text.tasks import load_items, parse_spec
from seap.vocabulary.options import Vocabulary

CONFIDENCE = 0.95
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept. `tasks` are specs: NAME or NAME=PATH."""

    tasks: tuple[str, ...]
    sparsities: tuple[float, ...]
    pruning: Pruning
    calibration: Calibration
    evaluation: Evaluation
    sizes: tuple[float, ...] = ()  # bytes of the weights on disk, in place of sparsities
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    repeats: int = 7
    batch: int = 1

    def __post_init__(self) -> None:
        for sparsity in self.sparsities:
            replace(self.pruning, sparsity=sparsity)
        if not self.tasks or not self.sparsities:
            raise UserError("name at least one task and one sparsity: --task NAME=PATH --sparsity 0.1,0.2")
        if self.repeats < 1 or self.batch < 1:
            raise UserError(f"--repeats {self.repeats} and --batch {self.batch}: both must be at least 1")
        check_mixture(self.pruning, [parse_spec(spec).name for spec in self.tasks])
        check_counted(self.pruning, self.sizes)


def sweep(
    name: str,
    plan: Sweep,
    out: Path,
    *,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
    ready: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Calibrate once, then prune, test and time at every sparsity. Writes OUT/sweep.json and returns what is in it.

    ready: called once nothing is left to be refused but what needs the model.
    """
    with claimed_results(out, "sweep", overwrite=overwrite, inputs=sources_of(name, plan.tasks)):
        return _sweep_claimed(name, plan, out, loading or {}, ready, progress=progress)


def _sweep_claimed(
    name: str,
    plan: Sweep,
    out: Path,
    loading: Mapping[str, Any],
    ready: Callable[[], None],
    *,
    progress: bool,
) -> dict[str, Any]:
    """`sweep`, once its output is known to be fit."""
    started = time.perf_counter()
    tests = [load_test(spec, plan.evaluation) for spec in plan.tasks]
    for spec in plan.tasks:
        load_items(parse_spec(spec), "train")
    ready()
    model, tokenizer = loader.load_for_work(name, **loading)
    plan = in_shares(plan, model, dtype_on_disk(model))
    likely = foreseen_for(model, plan)
    for sparsity in plan.sparsities:
        check(model, replace(plan.pruning, sparsity=sparsity), footprint=likely)
    words = plan.vocabulary, plan.calibration
    small = smaller_beside(model, tokenizer, list(plan.tasks), None, *words, progress=progress)
    exams, own = exams_of(plan, tests, model, tokenizer), exams_of(plan, tests, small.model, small.tokenizer)
    seen = footprint_for(model, plan.pruning, small.model)
    how: dict[str, Any] = {"footprint": seen, "progress": progress}
    frontier = Frontier.measure(small.model, small.tokenizer, plan.tasks, plan.pruning, plan.calibration, **how)
    rows = measure(Swept(model, exams, small, own), frontier, plan, progress=progress)
    result = about(name, model, frontier, plan) | {
        "data_hash": digest({exam.test.name: exam.test.data_hash for exam in exams}),
        "rows": rows,
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "sweep.json", result)
    return result


@dataclass(frozen=True)
class Swept:
    """The dense model with its exams, and the one that is pruned, which may have fewer tokens, with its own."""

    model: Any
    exams: Sequence[Exam]
    small: Smaller
    own: Sequence[Exam]

    @property
    def kinds(self) -> list[str]:
        """What can be measured of pruned models; first choices of other tokens don't compare."""
        left_out = {"min_agreement"} if self.small.model is not self.model else set()
        if any(exam.test.metric not in ACC_NAMES for exam in (*self.exams, *self.own)):
            left_out.add("max_acc_drop")
        return [kind for kind in KINDS if kind not in left_out]


def exams_of(plan: Sweep, tests: Sequence[Test], model: Any, tokenizer: Any) -> list[Exam]:
    """As a tokenizer reads the tests: whole texts where there are two tokenizers, which cut them into other windows."""
    each = plan.vocabulary.is_cut
    return [prepare(test, model, tokenizer, plan.evaluation, every_window=each) for test in tests]


def measure(swept: Swept, frontier: Frontier, plan: Sweep, *, progress: bool) -> list[Row]:
    """A row per sparsity and task, the dense model's first."""
    model, exams, kinds = swept.model, swept.exams, swept.kinds
    dense = [observe(model, exam, kinds) for exam in exams]
    whole = size_of(model) | {"sparsity": 0.0, "realised_sparsity": 0.0, "total_sparsity": 0.0}
    pairs = list(zip(exams, dense, strict=True))
    rows = [whole | _row(exam, kinds, first, first) for exam, first in pairs]
    for sparsity in tqdm(sorted(set(plan.sparsities) - {0.0}), desc="sweep", unit="sparsity", disable=not progress):
        pruned, report = frontier.make(sparsity)
        size = size_of(pruned) | _sparsities(swept.small.finished(report))
        seen = [observe(pruned, exam, kinds) for exam in swept.own]
        own = [size | _row(exam, kinds, first, one) for (exam, first), one in zip(pairs, seen, strict=True)]
        speed = compare_speed({"dense": model, "pruned": pruned}, batch=plan.batch, repeats=plan.repeats)
        rows += [row | {"speed": _speed(speed)} for row in own]
    return rows


def size_of(model: Any) -> Row:
    return {"params": sum(p.numel() for p in model.parameters()), "bytes": loader.weight_bytes(model)}


def _sparsities(report: Report) -> Row:
    return {
        "sparsity": report.target_sparsity,
        "realised_sparsity": report.realised_sparsity,
        "total_sparsity": report.total_sparsity,
        "target": report.target,
        "layers": report.layers,
        **({"vocabulary": report.vocabulary} if report.vocabulary else {}),
    }


def _speed(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Row:
    return {
        phase: {"dense_tokens_per_s": by_name["dense"]["tokens_per_s"], **by_name["pruned"]}
        for phase, by_name in found.items()
    }


def _row(exam: Exam, kinds: Sequence[str], dense: Outcome, own: Outcome) -> Row:
    """Loss, accuracy and agreement of one model on one task, against the dense model.

    exam: the dense model's. Losses are per token of its vocabulary, however many tokens the other one reads, and in
    nats per byte.
    """
    loss = ratio_of(list(zip(own.losses, dense.tokens, strict=True)))
    gains = [after - before for before, after in zip(dense.losses, own.losses, strict=True)]
    added = ratio_of(list(zip(gains, dense.tokens, strict=True)))
    num_tokens, num_bytes = exam.scored
    per_byte = num_tokens / num_bytes
    damages = {kind: damage(kind, exam, dense, own) for kind in kinds}
    row: Row = {
        "task": exam.test.name,
        "loss": loss.value,
        "loss_stderr": loss.stderr,
        "loss_n": loss.n,
        "ppl": math.exp(min(loss.value, 700)),
        "added_loss": added.value,
        "added_loss_stderr": added.stderr,
        "nats_per_byte": loss.value * per_byte,
        "added_nats_per_byte": added.value * per_byte,
        "added_nats_per_byte_stderr": added.stderr * per_byte,
        **_named("relative_loss", damages["max_loss"]),
        "test_hash": exam.test.data_hash,
    }
    if "min_agreement" in damages:
        row |= _named("disagreement", damages["min_agreement"])
    if own.right is not None:
        row |= {"acc": own.right.value, "acc_stderr": own.right.stderr, "n": own.right.n}
        row |= {"acc_metric": ACC_NAMES[exam.test.metric]} | _named("acc_drop", damages["max_acc_drop"])
    return row


def _named(name: str, found: Damage) -> Row:
    """`_upper` bounds are one-sided and for one sparsity alone, not for one chosen among several."""
    return {name: found.estimate, f"{name}_stderr": found.stderr, f"{name}_upper": found.upper(CONFIDENCE)}


def about(name: str, model: Any, frontier: Frontier, plan: Sweep) -> dict[str, Any]:
    """What the sweep was of, and what made it."""
    return {
        "kind": "sweep",
        "model": name,
        "family": model.config.model_type,
        "params": sum(p.numel() for p in model.parameters()),
        "prunable_params": describe(model).prunable_params,
        "fingerprint": fingerprint(model),
        "tasks": [parse_spec(spec).name for spec in plan.tasks],
        "method": plan.pruning.method,
        "choices": choices(plan.pruning),
        "sparsities": sorted(plan.sparsities),
        "confidence": CONFIDENCE,
        "calibration_tokens": sum(corpus.num_tokens for corpus in frontier.corpora.values()),
        "calibration_hashes": {name: corpus.data_hash for name, corpus in frontier.corpora.items()},
        "options": asdict(plan),
        **provenance(),
    }
