"""`seap compare`: makes and tests every network of a plan. Finished tests are files, so an interrupted run goes on."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seap import schema
from seap.disk.claim import claimed_results
from seap.environment import provenance
from seap.evaluation.evaluate import Exam, Test, evaluate, load_test, prepare
from seap.evidence.agreement import agreement, by_chance, mean
from seap.evidence.plan import Comparison, Network
from seap.evidence.sizes import foreseen_for, in_shares
from seap.evidence.workbench import Bench
from seap.files import digest, write_json
from seap.models import loader
from seap.models.arch import describe
from seap.models.axes import AXIS_NAMES
from seap.models.sizes import dtype_on_disk
from seap.pruning import prune as pruning
from seap.pruning.vocabulary import smaller_beside
from seap.selection.mask import load_masks, save_masks
from seap.text.sources import sources_of
from seap.text.tasks import load_items, parse_spec

Result = dict[str, Any]
ROW = "row of compare"


def compare(
    name: str,
    plan: Comparison,
    out: Path,
    *,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
    ready: Callable[[], None] = lambda: None,
) -> Result:
    """Run a comparison, or finish one that was interrupted. Writes OUT/compare.json and returns what is in it.

    ready: called once nothing is left to be refused but what needs the model.
    """
    with claimed_results(out, "compare", overwrite=overwrite, inputs=sources_of(name, _texts(plan))):
        return _compare_claimed(name, plan, out, loading or {}, ready, progress=progress)


def _compare_claimed(
    name: str,
    plan: Comparison,
    out: Path,
    loading: Mapping[str, Any],
    ready: Callable[[], None],
    *,
    progress: bool,
) -> Result:
    """`compare`, once its output is known to be fit."""
    started = time.perf_counter()
    tests = {parse_spec(spec).name: load_test(spec, plan.evaluation) for spec in plan.tasks}
    items = {spec: load_items(spec, "train") for spec in _texts(plan)}
    answered = [t for t in plan.names if tests[t].metric != "continuation" and _has_answers(tests[t])]
    ready()
    model, tokenizer = loader.load_for_work(name, **loading)
    plan = in_shares(plan, model, dtype_on_disk(model))
    for method in plan.methods:
        likely = foreseen_for(model, replace(plan, pruning=replace(plan.pruning, method=method)))
        for sparsity in plan.sparsities:
            pruning.check(model, replace(plan.pruning, method=method, sparsity=sparsity), footprint=likely)
    words = plan.vocabulary, plan.calibration
    small = smaller_beside(model, tokenizer, list(plan.tasks), plan.general, *words, progress=progress)
    exams, own = (_exams(plan, tests, *one) for one in ((model, tokenizer), (small.model, small.tokenizer)))
    whole = (model, exams) if small.model is not model else None
    bench = Bench(plan, small.model, small.tokenizer, out, own, items, progress, whole, small.finished)
    rows = run(bench, plan.networks(answered))
    result = _result(name, bench, rows, time.perf_counter() - started)
    write_json(out / "compare.json", result)
    return result


def _exams(plan: Comparison, tests: Mapping[str, Test], model: Any, tokenizer: Any) -> dict[str, Exam]:
    """As a tokenizer reads the tests: whole texts where there are two tokenizers, which cut them into other windows."""
    each = plan.vocabulary.is_cut
    return {task: prepare(test, model, tokenizer, plan.evaluation, every_window=each) for task, test in tests.items()}


def run(bench: Bench, networks: Sequence[Network]) -> list[Result]:
    """The dense rows, then every network's, in the order of the plan; they are made text by text."""
    progress = bench.progress
    if progress:
        num_rows = len(bench.tests) + sum(len(network.tested_on) for network in networks)
        there = sum(bench.row_file(n, task).is_file() for n in networks for task in n.tested_on)
        size = f"{len(networks)} networks to make, {num_rows} rows, {bench.max_tokens:,} calibration tokens each"
        tqdm.write(f"{size}; {there} rows are there already" if there else size, file=sys.stderr)
    rows = [_dense_row(bench, task) for task in bench.plan.names]
    bar = tqdm(sorted(networks, key=_by_text), desc="compare", unit="network", disable=not progress)
    found = {}
    for network in bar:
        bar.set_postfix_str(f"{network.method} {network.sparsity} {network.text}")
        found[network] = run_network(bench, network)
    return rows + [row for network in networks for row in found[network]]


def _by_text(network: Network) -> tuple[int, str, str]:
    return network.seed, network.text, network.method


def _has_answers(test: Test) -> bool:
    return all(item.prompt or item.question for item in test.items)


def _texts(plan: Comparison) -> list[str]:
    """The specs of everything that is calibrated on, or that a vocabulary is chosen by."""
    return [*plan.tasks, *([plan.general] if plan.general else [])]


def run_network(bench: Bench, network: Network) -> list[Result]:
    """Prune once and test on each task, taking from disk what an earlier run finished."""
    paths = {task: bench.row_file(network, task) for task in network.tested_on}
    if not all(path.is_file() for path in paths.values()):
        pruned, about = pruned_network(bench, network)
        for task, path in paths.items():
            if not path.is_file():
                write_json(path, about | _tested(bench, network, pruned, task), ROW)
    return [_read_row(path) for path in paths.values()]


def _read_row(path: Path) -> Result:
    """What an earlier run finished, or this one just now."""
    todo = "delete it, and its test is made again"
    row: Result = schema.read_json(path, todo)
    schema.check(row, schema.Row, str(path), todo)
    return row


def pruned_network(bench: Bench, network: Network) -> tuple[Any, Result]:
    """The network, and what its rows say of its making."""
    ranking, hashes = bench.ranking(network)
    pruned = deepcopy(bench.model)
    wanted = replace(bench.plan.pruning, method=network.method, sparsity=network.sparsity)
    report = pruning.prune(
        pruned,
        ranking=ranking,
        measure_damage=False,
        save_dtype=pruned.config.dtype,
        progress=False,
        **asdict(wanted),
        seed=network.seed,
    )
    report = bench.finished(report)
    about = {
        "method": network.method,
        "made_for": network.text.removeprefix("no-answers:") if network.text != "weights" else None,
        "control": network.control,
        "target_sparsity": network.sparsity,
        "realised_sparsity": report.realised_sparsity,
        "total_sparsity": report.total_sparsity,
        "params_after": report.params_after,
        "target": report.target,
        "seed": network.seed,
        "calibration_tokens": report.num_tokens or None,
        "data_hash": digest(hashes) if len(hashes) > 1 else next(iter(hashes), None),
        "layers": report.layers,
    }
    if report.vocabulary:
        about["vocabulary"] = report.vocabulary
    if wanted.resolved().allocate == "iterative":
        about["steps"] = wanted.spent.steps
        about["loss_of"] = "choices" if all(part.contrast for part in ranking.statistics.values()) else "text"
    save_masks(bench.mask_file(network), report.masks, about | {"fingerprint": bench.fingerprint})
    return pruned, about


def _tested(bench: Bench, network: Network, pruned: Any, task: str) -> Result:
    started = time.perf_counter()
    found = evaluate(pruned, bench.tests[task], reference=bench.reference)
    if bench.whole is not None:
        found |= per_dense_token(found, bench.dense[1][task])
    if network.control is None and network.text in bench.tests and network.text != task:
        found["control"] = "other-task"
    return found | {"seconds": time.perf_counter() - started}


def per_dense_token(found: Mapping[str, Any], dense: Exam) -> Result:
    """The loss of a model with fewer tokens, per token of the dense model's, so that the two compare."""
    tokens, size = dense.scored
    loss, error = (found[f"nats_per_byte{end}"] * size / tokens for end in ("", "_stderr"))
    same = {"loss": loss, "loss_stderr": error, "ppl": math.exp(min(loss, 700))}
    return same | {"loss_per_own_token": found["loss"], "kl": None, "agreement": None}


def _dense_row(bench: Bench, task: str) -> Result:
    dense = Network("dense", 0.0, 0, "weights", None, (task,))
    path = bench.row_file(dense, task)
    if not path.is_file():
        started = time.perf_counter()
        model, exams = bench.dense
        found = evaluate(model, exams[task])
        about = {"method": "dense", "made_for": None, "control": None, "target_sparsity": 0.0, "realised_sparsity": 0.0}
        params = sum(p.numel() for p in model.parameters())
        arch = describe(model)
        whole: list[dict[str, int]] = [{} for _ in arch.layers]
        for key, count in arch.units.items():
            _, layer, name = key.split(".")
            whole[int(layer)][name] = count
        like = {"kl": 0.0, "agreement": 1.0} if bench.whole is None else {}
        same = like | {"layers": whole, "calibration_tokens": None, "total_sparsity": 0.0}
        took = {"seed": 0, "params_after": params, "seconds": time.perf_counter() - started}
        write_json(path, about | found | same | took, ROW)
    return _read_row(path)


def _result(name: str, bench: Bench, rows: list[Result], seconds: float) -> Result:
    plan = bench.plan
    return {
        "kind": "compare",
        "model": name,
        "family": bench.model.config.model_type,
        "params": sum(p.numel() for p in bench.dense[0].parameters()),
        "prunable_params": describe(bench.model).prunable_params,
        "tasks": plan.names,
        "methods": list(plan.methods),
        "sparsities": list(plan.sparsities),
        "seeds": list(range(plan.seeds)),
        "calibration_tokens": bench.max_tokens,
        "rows": rows,
        "overlap": overlap(bench),
        "options": asdict(plan),
        "data_hash": digest({task: exam.test.data_hash for task, exam in bench.tests.items()}),
        **provenance(),
        "seconds": seconds,
    }


def overlap(bench: Bench) -> list[Result]:
    """Jaccard index of the first method's task masks of seed 0 between every two tasks, mean over layers."""
    plan, found = bench.plan, []
    for sparsity in plan.sparsities:
        own = [Network(plan.methods[0], sparsity, 0, task, None, ()) for task in plan.names]
        masks = {n.text: load_masks(bench.mask_file(n))[0] for n in own if bench.mask_file(n).is_file()}
        for axis in AXIS_NAMES:
            axes = [a for a in describe(bench.model).axes if a.name == axis]
            if axes and len(masks) > 1:
                first = next(iter(masks.values()))
                found.append(
                    {
                        "method": plan.methods[0],
                        "sparsity": sparsity,
                        "seed": 0,
                        "axis": axis,
                        "tasks": list(masks),
                        "jaccard": [
                            [mean(agreement(axes, one, other)) for other in masks.values()] for one in masks.values()
                        ],
                        "expected": mean(by_chance(axes, first, first)),
                    }
                )
    return found
