"""What a run will cost before it starts: stages × rates → time, memory, disk, and which option makes it cheaper.

Only the config, the tokenizer and the text are read, and a second is measured; no weight is loaded.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from seap.errors import UserError
from seap.models.options import Streaming
from seap.models.stacked import stacked_params
from seap.pruning import memory, streamed_cost
from seap.pruning.cost import Shape, pruning_stages, shape_of
from seap.pruning.damage import TOKENS as DAMAGE_TOKENS
from seap.pruning.jointly import COARSE, LOOK_TOKENS, as_a_look, weighs
from seap.pruning.prospect import Prospect, about_stats, prospect, stored_text
from seap.pruning.rates import Rates, Taken, measure_rates
from seap.pruning.targets import as_planned
from seap.pruning.work import Done, Stage, Text, merged
from seap.selection.footprint import asked
from seap.selection.options import Pruning
from seap.text.options import Calibration
from seap.vocabulary.counts import tokens_held
from seap.vocabulary.expected import TOKENS as EXPECTED
from seap.vocabulary.measuring import LOGITS, ROUGH
from seap.vocabulary.options import Vocabulary

LOW, HIGH = 0.75, 1.5  # of the estimate: its range
WORTH_SAYING = 0.8  # an option is named where it leaves at most so much of the time
OVERHEAD = 6.0  # seconds: Python and its libraries, reading the model, its checkpoint

# What makes a run cheaper, as it is typed, and what it changes; in the order of how little it costs in quality.
CHEAPER: dict[str, dict[str, Any]] = {
    "--effort standard": {"effort": "standard"},
    "--probe-tokens 512": {"probe_tokens": 512},
    "--effort quick": {"effort": "quick"},
    "--allocate logistic": {"allocate": "logistic"},
    "--no-sequential": {"sequential": False},
    "--method flap": {"method": "flap"},
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take. Seconds are of the clock as the machine is now, cpu_seconds of the processor."""

    what: str
    stages: tuple[tuple[Stage, Taken], ...]
    memory: float  # bytes at most, beside Python and PyTorch themselves
    memory_free: float
    disk: tuple[tuple[str, float, Path], ...] = ()  # what, bytes, where
    cheaper: tuple[tuple[str, float], ...] = ()  # option, seconds with it
    less_memory: str = ""  # the option that needs less
    planning: Taken = field(default_factory=lambda: Taken(0.0, 0.0))  # what this has taken, which a run does first
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def seconds(self) -> float:
        return OVERHEAD + self.planning.wall + sum(taken.wall for _, taken in self.stages)

    @property
    def cpu_seconds(self) -> float:
        return OVERHEAD + self.planning.cpu + sum(taken.cpu for _, taken in self.stages)

    def line(self) -> str:
        """In one line."""
        most = sorted(self.stages, key=lambda stage: -stage[1].wall)[:3]
        total = max(sum(taken.wall for _, taken in self.stages), 1e-9)
        shares = ", ".join(f"{stage.name} {taken.wall / total:.0%}" for stage, taken in most if taken.wall)
        on = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else self.device
        said = [
            f"about {span(self.seconds)} on {on}" + (f" ({shares})" if shares else ""),
            f"{size(self.memory)} of memory",
        ]
        if self.disk:
            said.append(f"{size(sum(part for _, part, _ in self.disk))} of disk")
        text = f"{self.what}: {', '.join(said)}"
        if self.cheaper:
            text += "; cheaper: " + ", ".join(f"{option} ({span(taken)})" for option, taken in self.cheaper[:2])
        return text

    def check(self) -> None:
        """Raise UserError where the run would not fit in memory, or on disk."""
        if self.memory > self.memory_free:
            hint = f"; add {self.less_memory}" if self.less_memory else "; use a larger machine"
            raise UserError(
                f"{self.what} needs about {size(self.memory)} of memory and {size(self.memory_free)} is free{hint}"
            )
        for place in {path for _, _, path in self.disk}:
            needed = sum(part for _, part, path in self.disk if path == place)
            free = shutil.disk_usage(place).free
            if needed > free:
                what = " and ".join(dict.fromkeys(what for what, _, path in self.disk if path == place))
                raise UserError(
                    f"{what} need about {size(needed)} on the disk of {place}, which has {size(free)} free; name "
                    "another place (--out, TMPDIR)"
                )

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        stages = [vars(stage) | {"seconds": taken.wall, "cpu_seconds": taken.cpu} for stage, taken in self.stages]
        return {
            "kind": "plan",
            "what": self.what,
            "seconds": self.seconds,
            "seconds_low": LOW * self.seconds,
            "seconds_high": HIGH * self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "memory_bytes": self.memory,
            "memory_free_bytes": self.memory_free,
            "disk": [{"what": what, "bytes": part, "place": str(path)} for what, part, path in self.disk],
            "planning_seconds": self.planning.wall,
            "stages": stages,
            "cheaper": [{"option": option, "seconds": seconds} for option, seconds in self.cheaper],
            "less_memory": self.less_memory,
            "device": self.device,
            "threads": self.threads,
        }


def span(seconds: float) -> str:
    """A range in the unit that suits it: `3 to 6 minutes`."""
    low, high = LOW * seconds, HIGH * seconds
    for unit, name in ((3600, "hours"), (60, "minutes"), (1, "seconds")):
        if high >= 2 * unit or unit == 1:
            few = 1 if low / unit < 10 and unit > 1 else 0
            return f"{low / unit:.{few}f} to {high / unit:.{few}f} {name}"
    raise AssertionError


def size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.0f} MB"


def rates_for(seen: Prospect, shape: Shape, text: Mapping[str, Text], calibration: Calibration) -> Rates:
    rows = sum(part.rows for part in text.values())
    length = sum(part.tokens for part in text.values()) // rows if rows else calibration.seq_len
    return measure_rates(
        shape, device=seen.device, dtype=seen.dtype, length=max(length, 2), batch_tokens=calibration.batch_tokens
    )


def disk_place(path: Path) -> Path:
    """The folder that is there already, on whose disk a path will lie."""
    return next(parent for parent in (path.resolve(), *path.resolve().parents) if parent.is_dir())


def plan_prune(
    name: str,
    out: Path,
    *,
    pruning: Pruning,
    calibration: Calibration,
    vocabulary: Vocabulary = Vocabulary(),  # noqa: B008
    tasks: Sequence[str] = (),
    stats_files: Sequence[Path] = (),
    is_masked: bool = False,
    num_sparsities: int = 1,
    loading: Mapping[str, Any] | None = None,
    save_dtype: str | None = None,
    streaming: Streaming = Streaming(),  # noqa: B008
) -> Estimate:
    """`seap prune --plan`. is_masked: whether the units are chosen already. num_sparsities: that a promise may try."""
    seen = prospect(name, loading, save_dtype=save_dtype)
    to = f" to {asked(pruning)}" if pruning.cost != "params" else ""
    wanted = pruning
    pruning = as_planned(seen.model, pruning, seen.saved, vocabulary)
    to += f", about --sparsity {pruning.sparsity:.2f}" if to else ""
    shape = shape_of(seen.model, pruning, seen.dtype.itemsize, seen.device)
    tokens_alone = vocabulary.is_cut and not pruning.sparsity and not is_masked
    if stats_files:
        text = {about["task"]: stored_text(about, calibration) for about in map(about_stats, stats_files)}
    else:
        text = seen.text(tasks, calibration) if needs_text(pruning, is_masked) and not tokens_alone else {}
    done = Done(calibrated=bool(stats_files), chosen=is_masked or tokens_alone)
    sparsities = [pruning.sparsity] * num_sparsities
    rates = rates_for(seen, shape, text, calibration)
    stages = pruning_stages(shape, pruning, text, moments=calibration.moments, sparsities=sparsities, done=done)
    stages = [*choosing_vocabulary(shape, vocabulary, len(tasks)), *stages]
    if wanted.cost != "params" and vocabulary.vocabulary == "auto" and not is_masked and weighs(wanted):
        stages = merged([*stages, *looking_at_layers(shape, pruning, text, moments=calibration.moments)])
    if not streaming.stream and tasks:
        stages.append(looking_at_damage(shape, len(tasks)))
    kept = shape.params - pruning.sparsity * shape.arch.prunable_params
    needs = memory.of_tokens(shape) if tokens_alone else memory.of(shape, pruning, text, calibration)
    if streaming.stream:
        needs = streamed_cost.needs(shape, pruning, text, calibration, streaming)
        if stacks := stacked_params(seen.model) * seen.saved.itemsize:
            needs = replace(needs, disk=(*needs.disk, ("experts' weights, stacked", stacks, disk_place(out))))
        read = streamed_cost.reading(shape, pruning, seen.saved.itemsize, sparsities, len(text), done)
        stages = merged([*stages, *read])
    given = Given(shape, rates, text, calibration.moments, sparsities, done)
    return Estimate(
        what=f"pruning {name} by {pruning.method}{to}",
        stages=tuple((stage, rates.of(stage)) for stage in stages),
        memory=needs.memory,
        memory_free=memory.free(seen.device),
        disk=(("the pruned model", kept * seen.saved.itemsize, disk_place(out)), *needs.disk),
        cheaper=() if done.chosen else cheaper(given, pruning),
        less_memory="" if streaming.stream else memory.smaller(pruning),
        planning=seen.looking,
        device=seen.device,
    )


def looking_at_damage(shape: Shape, num_tasks: int) -> Stage:
    """The loss and the KL of some held-out text, before and after the cut (`damage.py`)."""
    tokens, passes = 2.0 * DAMAGE_TOKENS, 2.0 * num_tasks * shape.num_layers
    return Stage(name="held-out loss", forward=tokens, positions=tokens, passes=passes)


def choosing_vocabulary(shape: Shape, options: Vocabulary, num_tasks: int) -> list[Stage]:
    """Text that tokens are expected in; with `auto` held-out text too, and twice as much with smaller vocabularies."""
    if not options.is_cut:
        return []
    looked, held = EXPECTED * num_tasks, tokens_held(num_tasks) if options.vocabulary == "auto" else 0
    passes = shape.num_layers * max((looked + 3 * held) * shape.vocabulary / LOGITS, 1)
    return [Stage(name="vocabulary", forward=looked + 3 * held, positions=looked + 2 * held, passes=passes)]


def looking_at_layers(shape: Shape, pruning: Pruning, text: Mapping[str, Text], *, moments: str) -> list[Stage]:
    """A first look at the layers, to choose the vocabulary together with them (`jointly.py`)."""
    look = as_a_look(pruning)
    little = {task: part.of(min(part.tokens, LOOK_TOKENS)) for task, part in text.items()}
    tokens = (COARSE + 4.0) * look.spent.probe_tokens
    trials = Stage(name="vocabulary", forward=tokens, positions=tokens, passes=(COARSE + 4.0) * shape.num_layers)
    look = replace(look, allocate="damage")
    read = (COARSE / ROUGH + 5.0) * tokens_held(len(text))  # held-out text, with each vocabulary that is tried
    passes = shape.num_layers * max(read * shape.vocabulary / LOGITS, 1)
    texts = Stage(name="vocabulary", forward=read, positions=read / 2, passes=passes)  # of smaller vocabularies
    return [*pruning_stages(shape, look, little, moments=moments, sparsities=[pruning.sparsity]), trials, texts]


def needs_text(pruning: Pruning, is_masked: bool) -> bool:
    return pruning.resolved().compensate != "none" if is_masked else pruning.needs_text


@dataclass(frozen=True)
class Given:
    """What an estimate is of, beside the options."""

    shape: Shape
    rates: Rates
    text: Mapping[str, Text]
    moments: str
    sparsities: Sequence[float]
    done: Done = field(default_factory=Done)

    def seconds(self, options: Pruning, text: Mapping[str, Text]) -> float:
        args: dict[str, Any] = {"moments": self.moments, "sparsities": self.sparsities, "done": self.done}
        return sum(self.rates.of(stage).wall for stage in pruning_stages(self.shape, options, text, **args))


def cheaper(given: Given, pruning: Pruning) -> tuple[tuple[str, float], ...]:
    """Options that would leave much less to do, and the seconds with each."""
    whole, found = given.seconds(pruning, given.text), []
    for option, change in CHEAPER.items():
        try:
            taken = given.seconds(replace(pruning, **change), given.text)
        except UserError:  # it doesn't go with the others
            continue
        found.append((option, taken))
    tokens = sum(part.tokens for part in given.text.values())
    if tokens and not given.done.calibrated:
        quarter = {task: part.of(part.tokens / 4) for task, part in given.text.items()}
        found.append((f"--max-tokens {max(tokens // 4 // len(quarter), 2)}", given.seconds(pruning, quarter)))
    worth = WORTH_SAYING * (OVERHEAD + whole)
    return tuple((option, OVERHEAD + taken) for option, taken in found if OVERHEAD + taken <= worth)


def together(parts: Sequence[tuple[Stage, Taken]]) -> tuple[tuple[Stage, Taken], ...]:
    """Stages of one name added up."""
    taken: dict[str, Taken] = {}
    for stage, own in parts:
        taken[stage.name] = taken.get(stage.name, Taken(0.0, 0.0)) + own
    return tuple((stage, taken[stage.name]) for stage in merged(stage for stage, _ in parts))


def begin(estimate: Estimate, tell: Callable[[str], None] | None) -> None:
    """Say what a run will cost, before it starts. Raises UserError where it would not fit."""
    if tell is not None:
        tell(estimate.line())
    estimate.check()
