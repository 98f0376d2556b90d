"""What a run's cost is counted in: stages of work of each kind, and the text that they are of."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run, as work of each kind."""

    name: str
    forward: float = 0.0  # tokens through all layers; through some of them, so much of it
    backward: float = 0.0  # tokens back through all layers
    positions: float = 0.0  # where the output layer and a softmax over the vocabulary are computed
    backward_positions: float = 0.0  # the same, and back
    passes: float = 0.0  # batches through one layer
    moments: float = 0.0  # float32 operations of second moments
    solves: float = 0.0  # float64 operations of solves and the products beside them
    variables: float = 0.0  # of a knapsack
    read: float = 0.0  # bytes from disk
    written: float = 0.0  # bytes to disk

    def times(self, factor: float) -> "Stage":
        """The same, so many times over."""
        kept = {name: value * factor for name, value in vars(self).items() if name != "name"}
        return Stage(name=self.name, **kept)

    def padded(self, padding: float) -> "Stage":
        """With so many tokens through the model for each of the text's own."""
        ran = ("forward", "backward", "positions", "backward_positions")
        return replace(self, **{name: getattr(self, name) * padding for name in ran})


@dataclass(frozen=True)
class Text:
    """Calibration text: tokens, and the batches that they come in."""

    tokens: int
    batches: int
    rows: int = 0
    padding: float = 1.0  # tokens that run for each that there is

    def of(self, tokens: float) -> "Text":
        """A part of it, cut to so many tokens."""
        share = min(tokens / max(self.tokens, 1), 1.0)
        parts = {"batches": max(round(share * self.batches), 1), "rows": round(share * self.rows)}
        return replace(self, tokens=round(share * self.tokens), **parts)


@dataclass(frozen=True)
class Done:
    """What a run finds done already."""

    calibrated: bool = False  # statistics are given
    chosen: bool = False  # so is what stays


NOTHING = Done()


def merged(stages: Iterable[Stage]) -> list[Stage]:
    """Stages of one name added up, in the order of their first."""
    found: dict[str, dict[str, float]] = {}
    for stage in stages:
        into = found.setdefault(stage.name, {})
        for name, value in vars(stage).items():
            if name != "name":
                into[name] = into.get(name, 0.0) + value
    return [Stage(name=name, **values) for name, values in found.items()]
