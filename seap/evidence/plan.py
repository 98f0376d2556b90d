"""What a comparison is made of: every method at equal sparsity and calibration tokens, and the controls beside it.

A network is one pruned model: a method, a sparsity, a seed, and the text that its mask was made of. Each is tested on
one or more tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from seap.errors import UserError, unknown
from seap.evaluation.options import Evaluation
from seap.evidence.sizes import check_counted
from seap.methods import METHODS
from seap.selection.options import Pruning
from seap.text.options import Calibration
from seap.text.tasks import apart, parse_spec
from seap.vocabulary.options import Vocabulary

RESERVED = frozenset({"general", "pooled", "weights", "general-text", "flap-1024x128"})  # texts that are no task's


@dataclass(frozen=True)
class Network:
    """One pruned model to make, and what it is tested on. `text` names what its mask is made of."""

    method: str
    sparsity: float
    seed: int
    text: str
    control: str | None
    tested_on: tuple[str, ...]


def _check_choices(pruning: Pruning) -> None:
    """Raise UserError for choices that a comparison makes itself."""
    for name, why in (
        ("mask", "every method has its own"),
        ("mix", "methods see the same text"),
        ("worst_task", "methods see the same text"),
    ):
        if getattr(pruning, name):
            raise UserError(f"--{name.replace('_', '-')} can't be combined with a comparison: {why}; leave it out")
    if pruning.round_to == 0:
        raise UserError("--round-to auto would round otherwise from run to run; give a comparison a number, such as 64")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared. `tasks` and `general` are specs: NAME or NAME=PATH."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    sizes: tuple[float, ...] = ()  # bytes of the weights on disk, in place of sparsities
    seeds: int = 1
    controls: bool = False
    general: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    evaluation: Evaluation = field(default_factory=Evaluation)
    pruning: Pruning = field(default_factory=Pruning)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)  # one for all networks

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise unknown("method", method, METHODS)
        _check_choices(self.pruning)
        check_counted(self.pruning, self.sizes)
        for method in self.methods:
            for sparsity in self.sparsities:
                replace(self.pruning, method=method, sparsity=sparsity)
        if not self.tasks or not self.methods or not self.sparsities or self.seeds < 1:
            raise UserError("name at least one task, one method, one sparsity and one seed")
        names = [spec.name for spec in apart(map(parse_spec, self.tasks))]
        taken = sorted(set(names) & RESERVED)
        if taken:
            raise UserError(f"a task can't be named {taken[0]} here, which stands for other text; name it otherwise")
        if self.controls and self.general is None:
            raise UserError("--controls needs general text: add --general NAME=PATH (or --general wikitext2)")

    @property
    def names(self) -> list[str]:
        return [parse_spec(spec).name for spec in self.tasks]

    @property
    def calibrated(self) -> tuple[str, ...]:
        """The specs of the texts that networks are calibrated on."""
        return (*self.tasks, *([self.general] if self.general and self.controls else []))

    def networks(self, answered: Sequence[str]) -> list[Network]:
        """Everything to make. `answered`: the tasks whose items have answers that can be left out."""
        names, made = tuple(self.names), []
        for seed in range(self.seeds):
            for sparsity in self.sparsities:
                for method in self.methods:
                    made += self._of_method(method, sparsity, seed, names)
                if self.controls:
                    main = self.methods[0]
                    made += [Network(main, sparsity, seed, f"no-answers:{t}", "no-answers", (t,)) for t in answered]
                    made.append(Network("flap", sparsity, seed, "flap-1024x128", "published-flap", names))
        return made

    def _of_method(self, method: str, sparsity: float, seed: int, names: tuple[str, ...]) -> list[Network]:
        preset = METHODS[method]
        if preset.mask in ("general", "general-raw"):
            return [Network(method, sparsity, seed, "general", None, names)]
        if not replace(self.pruning, method=method).needs_text:
            return [Network(method, sparsity, seed, "weights", None, names)]
        crossed = self.controls and method == self.methods[0]
        made = [Network(method, sparsity, seed, name, None, names if crossed else (name,)) for name in names]
        if self.controls:
            made.append(Network(method, sparsity, seed, "pooled", "pooled", names))
            made.append(Network(method, sparsity, seed, "general-text", "general-text", names))
        return made
