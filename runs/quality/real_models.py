"""What every method costs public models on the tasks that people know: by choice, by what is written, by loss.

    python runs/quality/real_models.py --models smollm2=FOLDER --tasks arc_easy=DATA boolq=DATA \\
        --methods seap,flap wanda-sp,seap-paper,random --sparsities 0.2 0.5 0.3 --out FOLDER
    python runs/quality/real_models.py --table --out FOLDER      # → results/quality/real_models.json

A row is a file, FOLDER/rows/MODEL/TASK/METHOD-SPARSITY-seedN.json: a network made for a task and tested on it. A second
run makes those that aren't there, and processes can share a folder (--only, --dense). The dense rows come first;
each argument of --methods is a round, which is finished for all models and tasks before the next one begins, and the
second draw of texts comes after all of the first. Every method reads the same text of a task's train part, as many
tokens, and removes the same share. A row has: loss,
perplexity, KL and agreement with the dense model on test windows; accuracy (paired with the dense model's) by choice or
by generated answer; of --say-items items what is said in free form, and how much of what is written loops or doesn't
end; the loss added on the other tasks.
"""

import argparse
import random
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from real_rows import Dense, Last, dense_row, pruned_row, row_file
from real_settings import Settings, check_settings, settings_there
from real_table import write_table

from seap.environment import provenance
from seap.errors import UserError
from seap.evaluation import harness, harness_data
from seap.evaluation.evaluate import Exam, Test, load_test, prepare
from seap.evaluation.options import Evaluation
from seap.evidence.plan import Comparison, Network
from seap.evidence.workbench import Bench
from seap.files import write_json
from seap.models import loader
from seap.selection.options import Pruning
from seap.text.items import Item
from seap.text.options import Calibration, Weigh, Wording
from seap.text.tasks import load_items, parse_spec

Rounds = list[list[Network]]


@dataclass
class Case:
    """A model that is loaded, with the tests of all tasks."""

    name: str
    bench: Bench
    settings: Settings
    out: Path
    also: dict[str, str]  # further tests of a task's networks: test → task
    last: Last = field(default_factory=Last)

    def dense(self, task: str) -> Dense:
        path = row_file(self.out, self.name, task)
        if not path.is_file():
            written(path, dense_row(self.bench.model, self.bench.tests[task]), self)
        return Dense.read(path)

    def make(self, network: Network, task: str) -> None:
        near = {task, *(name for name, of in self.also.items() if of in (task, network.text))}
        windows = self.settings.off_windows
        others = {name: self.dense(name) for name in self.bench.tests if windows and name not in near}
        made = self.last.of(self.bench, network)
        row = pruned_row(self.bench, made, task, self.dense(task), others, off_windows=windows)
        if network.text == "general":
            row["made_for_tasks"] = self.bench.plan.names
        if task in self.also:
            row["also_of"] = self.also[task]
        written(row_file(self.out, self.name, task, network), row, self)


def written(path: Path, row: dict[str, Any], case: Case) -> None:
    exam = case.bench.tests[row["task"]]
    about = {"kind": "real row", "model": case.name, "options": asdict(case.settings)}
    about |= {"prompts": f"lm-eval {version('lm-eval')}" if exam.questions else "own"}
    write_json(path, about | row | provenance())
    print(f"{time.strftime('%H:%M:%S')} {path.relative_to(case.out)}: {told(row)}", flush=True)


def told(row: dict[str, Any]) -> str:
    names = ("loss", "added_loss", "kl", "acc", "acc_norm", "loops", "endless", "said", "seconds")
    return ", ".join(f"{name} {row[name]:.3f}" for name in names if row.get(name) is not None)


def tests_of(specs: list[str], settings: Settings) -> dict[str, Test]:
    """Read again with fewer items where answers are generated."""
    tests = {}
    for spec in specs:
        test = load_test(spec, settings.of("any"))
        tests[test.name] = load_test(spec, settings.of(test.metric))
        if all(item.checks for item in test.items) and not settings.run_code:
            raise UserError(f"{test.name} is a task of code, tested by pass@1: add --run-generated-code")
    return tests


def also_of(a: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """--also NAME=PATH:TASK as test → its spec and whose networks it is a test of."""
    parts = [given.rpartition(":") for given in a.also]
    return {parse_spec(spec).name: (spec, task) for spec, _, task in parts}


def harness_questions(test: Test, plan: Comparison, settings: Settings) -> list[Item]:
    """A test's items in lm-evaluation-harness's own words, where it knows the task; none where it doesn't."""
    spec = next((parse_spec(spec) for spec in plan.tasks if parse_spec(spec).name == test.name), None)
    known = harness_data.LOCAL.get(test.name)
    if spec is None or spec.path is None or test.metric != "multiple-choice" or known is None:
        return []
    if spec.path.name not in known.folders:
        return []
    rows = harness.local_rows(test.name, spec.path.parent)
    drawn = random.Random(settings.evaluation.test_seed).sample(rows, len(rows))[: len(test.items)]
    found = harness.as_items(test.name, drawn)
    if [item.label for item in found] != [item.label for item in test.items]:
        raise UserError(f"{test.name}: lm-eval's items aren't those of {spec.path}; use --prompts own")
    return found


def loaded(name: str, folder: str, plan: Comparison, settings: Settings, tests: dict[str, Test], a: Any) -> Case:
    model, tokenizer = loader.load_for_work(folder, dtype=settings.dtype)
    exams: dict[str, Exam] = {}
    for task, test in tests.items():
        asked = harness_questions(test, plan, settings) if settings.prompts == "lm-eval" else []
        exams[task] = prepare(test, model, tokenizer, settings.of(test.metric), questions=asked)
    specs = [*plan.tasks, *([plan.general] if plan.general else [])]
    items = {spec: load_items(spec, "train") for spec in specs}
    bench = Bench(plan, model, tokenizer, a.out / "made" / name, exams, items, progress=False)
    assert plan.calibration.max_tokens is not None
    bench.max_tokens = plan.calibration.max_tokens  # of each task, whatever other tasks are named beside it
    return Case(name, bench, settings, a.out, {test: task for test, (_, task) in also_of(a).items()})


def rounds_of(a: argparse.Namespace, plan: Comparison) -> Rounds:
    """Networks in the order in which they are made: seed by seed, round by round; controls come last."""
    order = {method: place for place, method in enumerate(plan.methods)}
    made, found = plan.networks(()), []
    for test, (_, task) in also_of(a).items():
        made = [replace(n, tested_on=(*n.tested_on, test)) if task in n.tested_on else n for n in made]
    for seed in range(plan.seeds):
        own = [n for n in made if n.seed == seed]
        for methods in [] if a.only_controls else a.methods:
            found.append([n for n in own if n.control is None and n.method in methods.split(",")])
        found.append([n for n in own if n.control is not None])
    names = [*plan.names, ""]
    place = {name: i for i, name in enumerate(names)}

    def key(n: Network) -> Any:
        return place.get(n.text, len(names)), n.text, order.get(n.method, 0), plan.sparsities.index(n.sparsity)

    return [sorted(part, key=key) for part in found if part]


def missing(out: Path, model: str, networks: list[Network], a: argparse.Namespace) -> list[tuple[Network, str]]:
    """What is to be made by this process: networks made for --only, or tested on it where they are made for no task."""
    pairs = [(network, task) for network in networks for task in network.tested_on]
    if a.only:
        names = {parse_spec(spec).name for spec in a.tasks}
        pairs = [(n, task) for n, task in pairs if (n.text if n.text in names else task) in a.only]
    return [(network, task) for network, task in pairs if not row_file(out, model, task, network).is_file()]


def dense_tasks(tests: dict[str, Test], a: argparse.Namespace) -> list[str]:
    """Tests whose dense rows this process makes, where they are missing."""
    also = {test: task for test, (_, task) in also_of(a).items()}
    return [task for task in tests if not a.only or also.get(task, task) in a.only]


def run(a: argparse.Namespace, plan: Comparison, settings: Settings) -> int:
    """Make what is missing until the time is over; how many rows couldn't be made."""
    started, failed, case = time.monotonic(), 0, None
    tests = tests_of([*plan.tasks, *(spec for spec, _ in also_of(a).values())], settings)
    folders = dict(pair.split("=", 1) for pair in a.models)

    def over() -> bool:
        return a.minutes is not None and time.monotonic() - started > 60 * a.minutes

    for networks in [[], *([] if a.dense else rounds_of(a, plan))]:  # the dense rows are a round of their own
        for name, folder in folders.items():
            dense = [task for task in dense_tasks(tests, a) if not row_file(a.out, name, task).is_file()]
            todo = missing(a.out, name, networks, a)
            if (todo or dense) and not over() and (case is None or case.name != name):
                case = None  # the other model's memory is needed
                case = loaded(name, folder, plan, settings, tests, a)
            for task in dense:
                if not over() and case:
                    case.dense(task)
            for network, task in todo:
                if over() or case is None:
                    print("the time is over; run it again to go on", flush=True)
                    return failed
                try:
                    case.make(network, task)
                except UserError as error:
                    print(f"{name} {task} {network.method} {network.sparsity}: {error}", file=sys.stderr, flush=True)
                    failed += 1
    return failed


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="NAME=PATH:TASK", help="test TASK's networks on it too"
    )
    parser.add_argument("--run-generated-code", action="store_true", help="for pass@1: docs/security.md")
    parser.add_argument("--methods", nargs="+", default=["seap,flap", "wanda-sp,seap-paper,seap-gen,random"])
    parser.add_argument("--only", nargs="+", default=[], metavar="TASK", help="rows of networks made for these alone")
    parser.add_argument("--dense", action="store_true", help="the dense model's rows alone")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.2, 0.5, 0.3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--controls", action="store_true", help="of the first method; needs --general")
    parser.add_argument("--only-controls", action="store_true", help="no rows but these")
    parser.add_argument("--general", metavar="NAME=PATH", help="general text")
    parser.add_argument("--items", type=int, default=200, help="of multiple choice")
    parser.add_argument("--prompts", choices=("lm-eval", "own"), help="of multiple choice; lm-eval, or the folder's")
    parser.add_argument(
        "--say", choices=("listed", "open"), help="with the choices or without; listed, or the folder's"
    )
    parser.add_argument("--windows", type=int, default=100, help="that the loss is measured on")
    parser.add_argument("--say-items", type=int, default=32, help="of these in free form")
    parser.add_argument("--say-tokens", type=int, default=64)
    parser.add_argument("--answer-items", type=int, default=48, help="of tasks whose answers are generated")
    parser.add_argument("--answer-tokens", type=int, default=256)
    parser.add_argument("--off-windows", type=int, default=12, help="of every other task; 0: none")
    parser.add_argument("--num-texts", type=int, default=400)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16384, help="that are calibrated on, at most")
    parser.add_argument("--template", choices=("auto", "chat", "none"), default="auto", help="of the calibration text")
    parser.add_argument("--weigh", choices=get_args(Weigh), default=Calibration.weigh, help="of the calibration text")
    parser.add_argument("--wording", choices=get_args(Wording), default=Calibration.wording, help="of the same")
    parser.add_argument("--effort", default=Pruning.effort)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--minutes", type=float, help="no row begins after so many")
    parser.add_argument("--out", type=Path, default=Path("out/real"))
    parser.add_argument("--table", action="store_true", help="make no rows; write the table of those that are there")
    parser.add_argument("--result", type=Path, default=Path("results/quality/real_models.json"))
    return parser.parse_args()


def main() -> None:
    a = parsed()
    if a.table:
        write_table(a.out, a.result)
        return
    before = settings_there(a.out).get("settings", {"prompts": "lm-eval", "evaluation": {"say": "listed"}})
    say, prompts = a.say or before["evaluation"]["say"], a.prompts or before["prompts"]
    settings = Settings(
        Calibration(
            num_texts=a.num_texts,
            seq_len=a.seq_len,
            max_tokens=a.tokens,
            template=a.template,
            weigh=a.weigh,
            wording=a.wording,
        ),
        Evaluation(
            num_items=a.items, num_windows=a.windows, say_items=a.say_items, say=say, max_new_tokens=a.say_tokens
        ),
        Pruning(effort=a.effort),
        *(a.answer_items, a.answer_tokens, a.off_windows, a.dtype, a.run_generated_code, prompts),
    )
    plan = Comparison(
        tasks=tuple(a.tasks),
        methods=tuple(method for part in a.methods for method in part.split(",")),
        sparsities=tuple(a.sparsities),
        seeds=a.seeds,
        controls=a.controls or a.only_controls,
        general=a.general,
        calibration=settings.calibration,
        evaluation=settings.evaluation,
        pruning=settings.pruning,
    )
    for spec in plan.tasks:
        parse_spec(spec)
    check_settings(a.out, settings, dict(pair.split("=", 1) for pair in a.models))
    if run(a, plan, settings):
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
