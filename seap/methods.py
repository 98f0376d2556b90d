"""The methods: a choice for each stage, and the presets that users know by name. Imports no torch."""

from dataclasses import dataclass
from typing import Any, Literal

Score = Literal[
    "wifv",
    "wifv-flap",
    "wanda",
    "wanda-sp",
    "obs",
    "obs-fisher",
    "leverage",
    "taylor",
    "gisp",
    "gisp-mean",
    "block-influence",
    "magnitude",
    "random",
]
Allocate = Literal[
    "uniform", "one-width", "logistic", "adaptive", "global", "iterative", "whole-layers", "damage", "search"
]
MaskOf = Literal["task", "general", "general-raw", "pooled"]
Compensate = Literal["none", "bias", "ridge", "nystrom"]
Convention = Literal["true", "seap-reference"]
CurvesFrom = Literal["closed", "measured"]
EffortName = Literal["quick", "standard", "thorough"]
Drop = Literal["none", "attention", "mlp", "both"]
Heads = Literal["groups", "query"]
AxisName = Literal["kv_groups", "channels", "expert_channels"]

CHOICES: dict[str, Any] = {
    "score": Score,
    "allocate": Allocate,
    "mask": MaskOf,
    "compensate": Compensate,
    "sparsity_convention": Convention,
}
FIRST_ORDER = ("taylor", "gisp", "gisp-mean")  # scores of gradients
RUNNING = (*FIRST_ORDER, "block-influence")  # scores that run the model on the text, beside what was measured
RECONSTRUCTING = ("obs", "obs-fisher", "leverage")  # scores of second moments
NEEDS_ACTIVATIONS = ("wifv", "wifv-flap", "wanda", "wanda-sp", *RECONSTRUCTING, *RUNNING)
CLOSED_FORMS = ("ridge", "nystrom")  # compensations of second moments
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
    behind: bool = False  # each layer is measured behind the ones that are pruned already
    axes: tuple[str, ...] | None = None  # what is cut; all that the family allows with None
    spared: tuple[float, float] = (0.0, 0.0)  # first and last layers left whole: a share of all, or a number from 1 on
    paper: str = ""
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
    steps: int
    descents: int = 2


EFFORTS: dict[str, Effort] = {
    "quick": Effort(
        searches=False, refits=False, search_evaluations=16, probe_tokens=1024, fisher_tokens=2048, steps=5, descents=0
    ),
    "standard": Effort(search_evaluations=16, probe_tokens=1024, fisher_tokens=4096, steps=20),
    "thorough": Effort(search_evaluations=80, probe_tokens=4096, fisher_tokens=16384, steps=112, descents=4),
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
        score="wifv",
        allocate="logistic",
        mask="task",
        compensate="none",
        paper="arXiv 2503.07605",
        about="task mask, as in the SEAP paper",
    ),
    "seap-gen": Method(
        score="wifv",
        allocate="logistic",
        mask="general",
        compensate="none",
        paper="arXiv 2503.07605",
        about="one mask for several tasks (SEAP)",
    ),
    "flap": Method(
        score="wifv-flap",
        allocate="adaptive",
        mask="pooled",
        compensate="bias",
        paper="arXiv 2312.11983",
        about="FLAP (An et al., 2024), AL-AM; a head costs its own parameters, where its code has 170 channels",
    ),
    "wanda-sp": Method(
        score="wanda-sp",
        allocate="uniform",
        mask="pooled",
        compensate="none",
        paper="arXiv 2312.11983",
        about="Wanda-sp, FLAP's baseline, on the dense model's activations",
    ),
    "wanda-sp-sequential": Method(
        score="wanda-sp",
        allocate="uniform",
        mask="pooled",
        compensate="none",
        behind=True,
        paper="arXiv 2312.11983",
        about="Wanda-sp as its code runs: each layer measured behind the ones that are pruned already",
    ),
    "gisp": Method(
        score="gisp",
        allocate="iterative",
        mask="pooled",
        compensate="none",
        spared=(0.1, 1),
        paper="arXiv 2510.18030",
        about="GISP: gradients of the task's loss, one list over all layers, many steps with new scores",
    ),
    "llm-pruner": Method(
        score="taylor",
        allocate="uniform",
        mask="pooled",
        compensate="none",
        spared=(1 / 8, 1 / 16),
        paper="arXiv 2305.11627",
        about="LLM-Pruner, element-wise first-order Taylor (param_first), without its fine-tuning",
    ),
    "shortgpt": Method(
        score="block-influence",
        allocate="whole-layers",
        mask="pooled",
        compensate="none",
        paper="arXiv 2403.03853",
        about="ShortGPT: whole layers go, those that turn the hidden state least; sparsity in steps of a layer",
    ),
    "obs": Method(
        score="obs",
        allocate="uniform",
        mask="pooled",
        compensate="ridge",
        paper="arXiv 2302.04089",
        about="structured OBS as in ZipLM, without its search for widths: the same share of every layer",
    ),
    "modegpt-mlp": Method(
        score="leverage",
        allocate="uniform",
        mask="pooled",
        compensate="nystrom",
        axes=("channels",),
        paper="arXiv 2408.09632",
        about="MoDeGPT's MLP part: channels by ridge leverage, the others by Nyström; attention stays whole",
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
        paper="arXiv 2503.07605",
        about="SEAP as its code runs, removing less than the sparsity it names; by the paper's k = 1, where the "
        "published command line has 0.8: --logistic-k 0.8",
    ),
    "random": Method(
        score="random", allocate="uniform", mask="pooled", compensate="none", about="a floor to compare to"
    ),
}
