"""Pruning to a promise: the largest sparsity whose damage on held-out text keeps within a bound.

The held-out text is the task's test part, which calibration never sees. The promise is made for text like it, with
all of the sparsities that were looked at paid for (`promise.largest`). To measure the result once more on the same
texts, as `seap eval` does, tells nothing new: for that keep other texts back.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Unpack

from tqdm import tqdm

from seap.activations.ranks import Ranks
from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.evaluation.evaluate import Exam, Test, load_test, prepare
from seap.evaluation.options import Evaluation
from seap.evidence.frontier import Frontier
from seap.evidence.heldout import Outcome, check_dense, damage, observe
from seap.evidence.options import Promise
from seap.evidence.promise import UNSEEN_LOSS, WORSE_THAN_SEEN, Damage, Levels, largest, more_texts, texts_needed
from seap.evidence.sizes import check_counted, footprint_for
from seap.models.sizes import dtype_on_disk
from seap.pruning.provenance import note_, origin_of
from seap.pruning.prune import split_options
from seap.pruning.report import Report, Run
from seap.pruning.vocabulary import check_whole_first, vocabulary_cut
from seap.selection.footprint import output_of
from seap.selection.keywords import PruneKeywords
from seap.vocabulary.options import Vocabulary, vocabulary_of

ASSUMED = (
    f"no text's loss grows by more than {WORSE_THAN_SEEN:g} times the most that was seen, or by {UNSEEN_LOSS:.0%} of a "
    "mean text's loss if that is more"
)

NO_PROMISE = (
    "agreement is kept token by token of the dense model's text, and fewer tokens cut that text otherwise; promise "
    "--max-loss or --max-acc-drop, which are of texts and items"
)


def prune_to_promise(
    model: Any,
    tokenizer: Any,
    *,
    task: str | Sequence[str],
    max_loss: float | str | None = None,
    max_acc_drop: float | str | None = None,
    min_agreement: float | str | None = None,
    promise: Promise | None = None,
    evaluation: Evaluation | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    general: str | None = None,
    progress: bool = True,
    **options: Unpack[PruneKeywords],
) -> Report:
    """Prune a model in place to a promise: `seap.prune_to_promise(model, tokenizer, task="gsm8k", max_loss="1%")`.

    task: `NAME` or `NAME=PATH`, or several for a method whose mask is general: the promise then holds for each of them.
    promise: the confidence, and the sparsities to try. general: text that a cut vocabulary is to read and write too, as
    NAME or NAME=PATH. Other options are those of `seap.prune` but the sparsity. The
    report has `promise` in its `provenance`. Raises UserError, and leaves the model as it was, where the held-out text
    is too little for the promise or no sparsity keeps it.
    """
    started = time.perf_counter()
    if "sparsity" in options:
        raise UserError("a promise finds the sparsity itself; leave out sparsity, or the promise")
    asked = {"max_loss": max_loss, "max_acc_drop": max_acc_drop, "min_agreement": min_agreement}
    wanted = Promise(**(asdict(promise or Promise()) | {name: v for name, v in asked.items() if v is not None}))
    vocabulary, others = vocabulary_of(options)
    check_vocabulary(wanted, vocabulary)
    pruning, calibration = split_options(others)
    check_counted(pruning, ())
    tasks = [task] if isinstance(task, str) else list(task)
    read_alike = Evaluation(template=calibration.template, weigh=calibration.weigh)
    tests = load_tests(tasks, wanted, evaluation or read_alike)

    def exams_of(words: Any) -> list[Exam]:
        """Whole texts where two tokenizers read them, which cut them into other windows."""
        each = vocabulary.is_cut
        return [prepare(test, model, words, settings, every_window=each) for test, settings in tests]

    exams = exams_of(tokenizer)
    for exam in exams:
        check_size(exam.test, wanted, _num_texts(exam, wanted), exam.options)
    run = Run(pruning, calibration, statistics=dict(statistics or {}), vocabulary=vocabulary)
    check_whole_first(model, run, Ranks())
    if general is not None and not vocabulary.is_cut:
        run.notes.append("--general has no effect without --vocabulary: a promise mixes no text")
    dense, origin, seen = observed(model, exams, wanted), origin_of(model), footprint_for(model, pruning)
    with vocabulary_cut(model, tokenizer, tasks, general, run, progress=progress) as finished:
        exams = exams_of(tokenizer) if vocabulary.is_cut else exams
        seen = seen and seen.with_output(output_of(model, pruning, dtype_on_disk(model)))
        how: dict[str, Any] = {"statistics": statistics, "footprint": seen, "progress": progress}
        search = Search(Frontier.measure(model, tokenizer, tasks, pruning, calibration, **how), wanted, exams, dense)
        search.progress = progress
        found = search.run()
        report = replace(finished(search.frontier.cut_(model, found)), origin=origin)
    told = report.provenance | {"promise": search.told(found)}
    notes, took = (*run.notes, *report.notes), time.perf_counter() - started
    report = replace(report, provenance=told, notes=notes, seconds=took)
    assert report.origin is not None
    note_(model, report.to_dict(), report.masks, report.origin)
    return report


def check_vocabulary(promise: Promise, vocabulary: Vocabulary) -> None:
    """Raise UserError for a promise about tokens where these change."""
    if vocabulary.is_cut and promise.kind == "min_agreement":
        raise UserError(f"--vocabulary {vocabulary.vocabulary}: {NO_PROMISE}")


def observed(model: Any, exams: Sequence[Exam], promise: Promise) -> list[Outcome]:
    """The dense model on all exams. Raises UserError where it is too bad to promise anything of."""
    assert promise.kind is not None
    found = [observe(model, exam, [promise.kind]) for exam in exams]
    for exam, outcome in zip(exams, found, strict=True):
        check_dense(promise.kind, exam, outcome, promise.bound)
    return found


def load_tests(tasks: Sequence[str], promise: Promise, options: Evaluation) -> list[tuple[Test, Evaluation]]:
    """The held-out part of each task, and how it is measured; all that can be refused without a model is refused."""
    if promise.kind is None:
        raise UserError("nothing is promised: give --max-loss, --max-acc-drop or --min-agreement")
    if not tasks:
        raise UserError("a promise is about a task's held-out text: add --task NAME or --task NAME=PATH")
    if promise.kind != "max_acc_drop":
        options = replace(options, metric="loss")
    elif options.metric == "loss":
        raise UserError("--max-acc-drop is about accuracy, which --metric loss leaves out; drop one of them")
    tests = [load_test(spec, options) for spec in tasks]
    found = [(test, replace(options, metric=test.metric)) for test in tests]  # nothing else in its place
    for test, _ in found:
        check_size(test, promise, min(len(test.items), options.num_items), options)
    return found


def check_size(test: Test, promise: Promise, num_texts: int, options: Evaluation) -> None:
    """Raise UserError where not even an undamaged model could be promised with so many texts."""
    assert promise.kind is not None
    unseen = UNSEEN_LOSS if promise.kind == "max_loss" else 1.0
    least = texts_needed(promise.bound, Levels.of(promise.confidence, 1).climb, unseen=unseen)
    if num_texts < least:
        things = "items" if promise.kind == "max_acc_drop" else "texts"
        raise UserError(
            f"task {test.name}: its test set is too small for this promise. To be {100 * promise.confidence:.4g}% sure "
            f"that {promise.words} takes {least} held-out {things} even if not one is hurt; here are {num_texts} "
            f"(--num-items {options.num_items}). Give it more text, raise --num-items, or promise less"
        )


def _num_texts(exam: Exam, promise: Promise) -> int:
    if promise.kind == "max_acc_drop":
        asked = len(exam.asked) // 4 if exam.test.metric == "continuation" else len(exam.test.items)
        return min(asked, exam.options.num_items)
    return len(set(exam.owners))


@dataclass
class Search:
    """The sparsities tried so far, with what each did to every task's held-out texts."""

    frontier: Frontier
    promise: Promise
    exams: Sequence[Exam]
    dense: Sequence[Outcome]  # what the dense model said
    progress: bool = True
    found: dict[float, tuple[float, list[Damage]]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        assert self.promise.kind is not None
        return self.promise.kind

    def run(self) -> float:
        """The largest sparsity that can be promised. Raises UserError where it is none."""
        sparsities = self.frontier.possible(self.promise.sparsities)
        levels = Levels.of(self.promise.confidence, len(sparsities))
        with tqdm(desc="search", unit="sparsity", disable=not self.progress, leave=False) as bar:

            def certified(i: int, level: float) -> bool:
                if sparsities[i] not in self.found:
                    self.found[sparsities[i]] = self.measure(sparsities[i])
                    bar.set_postfix_str(f"{sparsities[i]:g}")
                    bar.update()
                return self.judge(sparsities[i], level, "climb" if level == levels.climb else "bisection")

            place = largest(certified, len(sparsities), levels)
        if place < 0:
            raise self.refusal(sparsities[0], levels.climb)
        return sparsities[place]

    def measure(self, sparsity: float) -> tuple[float, list[Damage]]:
        """Realised sparsity, and the damage to each task."""
        pruned, report = self.frontier.make(sparsity)
        outcomes = [observe(pruned, exam, [self.kind]) for exam in self.exams]
        triples = zip(self.exams, self.dense, outcomes, strict=True)
        return report.realised_sparsity, [damage(self.kind, exam, dense, own) for exam, dense, own in triples]

    def judge(self, sparsity: float, level: float, part: str) -> bool:
        """Whether every task's damage is within the bound; every one must be, so several cost no confidence."""
        realised, damages = self.found[sparsity]
        uppers = [one.upper(level) for one in damages]
        kept = all(upper <= self.promise.bound for upper in uppers)
        step = {"sparsity": sparsity, "realised_sparsity": realised, "part": part, "confidence": level}
        step |= {"estimate": max(one.estimate for one in damages), "upper": max(uppers), "kept": kept}
        self.steps.append(step)
        return kept

    def refusal(self, sparsity: float, level: float) -> UserError:
        """Why nothing can be promised, and what would help."""
        bound, damages = self.promise.bound, self.found[sparsity][1]
        worst = max(range(len(damages)), key=lambda i: damages[i].upper(level))
        name, hurt = self.exams[worst].test.name, damages[worst]
        things = "items" if self.kind == "max_acc_drop" else "texts"
        seen = f"{100 * hurt.estimate:.2f}% (at most {100 * hurt.upper(level):.2f}%) on {hurt.n} held-out {things}"
        needed = more_texts(hurt, bound, level)
        small = f"the test set is too small to tell; about {needed} {things} would do" if needed else ""
        return UserError(
            f"no sparsity keeps this promise for task {name}: at {sparsity:g}, the least that was tried, the damage is "
            f"{seen}, and {100 * bound:.3g}% was asked. "
            f"{small[:1].upper() + small[1:] or 'Promise less, try another --method, or lower --resolution'}. "
            "Nothing was written"
        )

    def told(self, sparsity: float) -> dict[str, Any]:
        """What was promised, for seap.json: damages are fractions, `upper` at the last step's own confidence."""
        realised, damages = self.found[sparsity]
        level = max(step["confidence"] for step in self.steps if step["sparsity"] == sparsity and step["kept"])
        tasks = {
            exam.test.name: {
                "n": one.n,
                "estimate": one.estimate,
                "stderr": one.stderr,
                "upper": one.upper(level),
                "test_hash": exam.test.data_hash,
                "metric": exam.test.metric if self.kind == "max_acc_drop" else self.kind.split("_")[1],
            }
            for exam, one in zip(self.exams, damages, strict=True)
        }
        return {
            "kind": self.kind,
            "bound": self.promise.bound,
            "confidence": self.promise.confidence,
            "words": self.promise.words,
            "assumes": ASSUMED if self.kind == "max_loss" else None,
            "sparsity": sparsity,
            "realised_sparsity": realised,
            "tasks": tasks,
            "steps": self.steps,
            "options": asdict(self.promise),
            "evaluation": asdict(self.exams[0].options),
        }
