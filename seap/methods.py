"""The methods: a choice for each stage, and the presets that users know by name. Imports no torch."""

from dataclasses import dataclass
from typing import Any, Literal

Score = Literal["wifv", "wifv-flap", "wanda", "wanda-sp", "obs", "obs-fisher", "magnitude", "random"]
Allocate = Literal["uniform", "one-width", "logistic", "adaptive", "damage", "search"]
MaskOf = Literal["task", "general", "general-raw", "pooled"]
Compensate = Literal["none", "bias", "ridge"]
Convention = Literal["true", "seap-reference"]
CurvesFrom = Literal["closed", "measured"]
EffortName = Literal["quick", "standard", "thorough"]

CHOICES: dict[str, Any] = {
    "score": Score,
    "allocate": Allocate,
    "mask": MaskOf,
    "compensate": Compensate,
    "sparsity_convention": Convention,
}
NEEDS_ACTIVATIONS = ("wifv", "wifv-flap", "wanda", "wanda-sp", "obs", "obs-fisher")
RECONSTRUCTING = ("obs", "obs-fisher")  # scores of second moments
MEASURED = ("damage", "search")  # allocations by the damage of each axis


@dataclass(frozen=True, kw_only=True)
class Method:
    """A pruning method as its users know it: a choice for each stage."""

    score: Score
    allocate: Allocate
    mask: MaskOf
    compensate: Compensate
    convention: Convention = "true"
    sequential: bool = False
    about: str


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a run spends on choosing units and widths, beside the text that it measures."""

    searches: bool = True  # where the method does
    refits: bool = True  # where the method does
    curves: CurvesFrom = "closed"
    search_evaluations: int
    probe_tokens: int
    fisher_tokens: int


EFFORTS: dict[str, Effort] = {
    "quick": Effort(searches=False, refits=False, search_evaluations=20, probe_tokens=1024, fisher_tokens=2048),
    "standard": Effort(search_evaluations=20, probe_tokens=1024, fisher_tokens=8192),
    "thorough": Effort(search_evaluations=80, probe_tokens=4096, fisher_tokens=16384),
}

METHODS: dict[str, Method] = {
    "seap": Method(
        score="obs-fisher",
        allocate="search",
        mask="task",
        compensate="ridge",
        sequential=True,
        about="what we recommend: reconstruction, and the units and widths that leave the least damage after it",
    ),
    "seap-all": Method(
        score="obs-fisher",
        allocate="search",
        mask="general",
        compensate="ridge",
        sequential=True,
        about="the same for several tasks at once: one checkpoint that serves them all",
    ),
    "seap-paper": Method(
        score="wifv", allocate="logistic", mask="task", compensate="none", about="task mask, as in the SEAP paper"
    ),
    "seap-gen": Method(
        score="wifv", allocate="logistic", mask="general", compensate="none", about="one mask for several tasks (SEAP)"
    ),
    "flap": Method(
        score="wifv-flap", allocate="adaptive", mask="pooled", compensate="bias", about="FLAP (An et al., 2024), AL-AM"
    ),
    "wanda-sp": Method(
        score="wanda-sp", allocate="uniform", mask="pooled", compensate="none", about="Wanda-sp, FLAP's baseline"
    ),
    "magnitude": Method(
        score="magnitude", allocate="uniform", mask="pooled", compensate="none", about="weights alone, no activations"
    ),
    "seap-reference": Method(
        score="wifv",
        allocate="logistic",
        mask="task",
        compensate="none",
        convention="seap-reference",
        about="SEAP as its code runs, removing less than the sparsity it names",
    ),
    "random": Method(
        score="random", allocate="uniform", mask="pooled", compensate="none", about="a floor to compare to"
    ),
}
