"""What a comparison or a sweep will cost before it starts: every network's stages, and its tests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seap.evaluation.evaluate import Test, load_test
from seap.evaluation.options import Evaluation
from seap.evidence.plan import Comparison, Network
from seap.evidence.sizes import in_shares
from seap.evidence.sweep import Sweep
from seap.pruning import memory
from seap.pruning.cost import Shape, calibration, pruning_stages, shape_of
from seap.pruning.estimate import Estimate, Given, cheaper, choosing_vocabulary, disk_place, rates_for
from seap.pruning.prospect import PER_CHARACTER, Prospect, prospect
from seap.pruning.work import Done, Stage, Text, merged
from seap.selection.options import Pruning
from seap.text.tasks import parse_spec

SAMPLED = 20  # texts whose tokens are counted


def plan_compare(name: str, plan: Comparison, out: Path, *, loading: Mapping[str, Any] | None = None) -> Estimate:
    """`seap compare --plan`: all networks and rows, also those that are there already."""
    seen = prospect(name, loading)
    plan = in_shares(plan, seen.model, seen.saved)
    shape = shape_of(seen.model, plan.pruning, seen.dtype.itemsize, seen.device)
    texts = seen.text([*plan.tasks, *([plan.general] if plan.general else [])], plan.calibration)
    smallest = min(texts.values(), key=lambda text: text.tokens)  # every network gets as much
    tests = {parse_spec(spec).name: load_test(spec, plan.evaluation) for spec in plan.tasks}
    networks = plan.networks(plan.names if plan.controls else ())
    stages = [_test(seen, shape, tests[task], plan.evaluation, likeness=False) for task in plan.names]
    stages += [*choosing_vocabulary(shape, plan.vocabulary, len(plan.tasks)), *_made(shape, plan, networks, smallest)]
    for network in networks:
        stages += [_test(seen, shape, tests[task], plan.evaluation) for task in network.tested_on]
    each = [
        memory.of(shape, replace(plan.pruning, method=method), {"text": smallest}, plan.calibration)
        for method in plan.methods
    ]
    matrices = max(each, key=lambda needs: needs.memory)
    statistics = 16.0 * sum(axis.num_inputs for axis in shape.arch.axes) * len({(n.seed, n.text) for n in networks})
    return _estimate(
        f"comparing {len(networks)} networks of {name}",
        seen,
        shape,
        stages,
        {"text": smallest},
        plan.pruning,
        plan.calibration,
        memory_bytes=matrices.memory + shape.weight_bytes,  # the dense model and a copy that is cut
        disk=(("statistics and masks", statistics, disk_place(out)), *matrices.disk),
        options=(
            ("--sparsity with one number", len(plan.sparsities)),
            ("--methods with fewer names", len(plan.methods)),
        ),
    )


def _made(shape: Shape, plan: Comparison, networks: Sequence[Network], text: Text) -> list[Stage]:
    """Calibrations, rankings and cuts: one calibration for a text, one ranking for a text and a method."""
    stages = [calibration(shape, text, None) for _ in {(n.seed, n.text) for n in networks if n.text != "weights"}]
    for seed, made_of, method in dict.fromkeys((n.seed, n.text, n.method) for n in networks):
        options = replace(plan.pruning, method=method)
        sparsities = [n.sparsity for n in networks if (n.seed, n.text, n.method) == (seed, made_of, method)]
        given = {"text": text} if made_of != "weights" else {}
        done = Done(calibrated=not options.needs_second_moments)
        stages += pruning_stages(shape, options, given, sparsities=sparsities, done=done)
    return stages


def plan_sweep(name: str, plan: Sweep, out: Path, *, loading: Mapping[str, Any] | None = None) -> Estimate:
    """`seap sweep --plan`."""
    seen = prospect(name, loading)
    plan = in_shares(plan, seen.model, seen.saved)
    shape = shape_of(seen.model, plan.pruning, seen.dtype.itemsize, seen.device)
    text = seen.text(plan.tasks, plan.calibration) if plan.pruning.needs_text else {}
    tests = [load_test(spec, plan.evaluation) for spec in plan.tasks]
    sparsities = [sparsity for sparsity in set(plan.sparsities) if sparsity]
    stages = pruning_stages(shape, plan.pruning, text, moments=plan.calibration.moments, sparsities=sparsities)
    stages += [_test(seen, shape, test, plan.evaluation, likeness=False).times(1 + len(sparsities)) for test in tests]
    stages += choosing_vocabulary(shape, plan.vocabulary, len(plan.tasks))
    stages.append(_speed(shape, plan.batch, plan.repeats).times(len(sparsities)))
    needs = memory.of(shape, plan.pruning, text, plan.calibration)
    return _estimate(
        f"sweeping {len(sparsities)} sparsities of {name}",
        seen,
        shape,
        stages,
        text,
        plan.pruning,
        plan.calibration,
        memory_bytes=needs.memory + shape.weight_bytes,
        disk=needs.disk,
        options=(("--sparsity with one number", len(sparsities)),),
    )


def _estimate(
    what: str,
    seen: Prospect,
    shape: Shape,
    stages: Sequence[Stage],
    text: Mapping[str, Text],
    pruning: Pruning,
    calibration: Any,
    *,
    memory_bytes: float,
    disk: tuple[tuple[str, float, Path], ...],
    options: tuple[tuple[str, int], ...],
) -> Estimate:
    rates = rates_for(seen, shape, text, calibration)
    parts = tuple((stage, rates.of(stage)) for stage in merged(stages))
    total = sum(taken.wall for _, taken in parts)
    one = Given(shape, rates, text, calibration.moments, [pruning.sparsity])
    whole = one.seconds(pruning, text) or 1.0
    fewer = [(option, total / count) for option, count in options if count > 1]
    same = [(option, total * taken / whole) for option, taken in cheaper(one, pruning) if "--max-tokens" in option]
    return Estimate(
        what=what,
        stages=parts,
        memory=memory_bytes,
        memory_free=memory.free(seen.device),
        disk=disk,
        cheaper=(*fewer, *same),
        planning=seen.looking,
        device=seen.device,
    )


def _speed(shape: Shape, batch: int, repeats: int) -> Stage:
    """Prefill and decode of the dense and the cut model; a decoded token costs as much as some that are read."""
    runs, length, new, dearer = 2 * (repeats + 1), 256, 32, 8
    tokens = runs * batch * (2 * length + new * dearer / min(batch, dearer))
    return Stage(name="speed", forward=tokens, positions=runs * batch * new, passes=runs * (new + 2) * shape.num_layers)


def _test(seen: Prospect, shape: Shape, test: Test, options: Evaluation, *, likeness: bool = True) -> Stage:
    """One model's test: loss (and likeness to the dense model) on windows, and accuracy."""
    lengths = _lengths(seen, [item.text for item in test.items])
    windows = min(sum(lengths), options.num_items * options.window)
    read, positions, passes = windows, windows * (2 if likeness else 1), 1.0
    drawn = test.items[: options.num_items]
    if test.metric == "multiple-choice":
        choices = sum(len(item.choices or ()) for item in drawn)
        read += choices * sum(lengths) / len(lengths)
        positions += choices * 4
    elif test.metric == "continuation":
        read += 4 * len(drawn) * (options.context + options.continuation)
        positions += 4 * len(drawn) * options.continuation
    elif test.metric in ("exact-match", "pass@1"):
        written = min(options.max_new_tokens, 4 * max(_lengths(seen, [item.answer or "" for item in drawn])))
        read += sum(lengths[: len(drawn)]) + len(drawn) * written
        positions += len(drawn) * written
        passes += written * max(len(drawn) / 64, 1)
    batches = read / 4096 + passes
    return Stage(name="test", forward=read, positions=positions, passes=batches * shape.num_layers)


def _lengths(seen: Prospect, texts: Sequence[str]) -> list[float]:
    """Tokens of each text, by the rate of tokens to characters in some of them."""
    some = texts[:SAMPLED]
    characters = sum(map(len, some)) or 1
    rate = PER_CHARACTER
    if seen.tokenizer is not None:
        rate = sum(len(seen.tokenizer(text, verbose=False)["input_ids"]) for text in some) / characters
    return [rate * len(text) + 1 for text in texts]
