"""How much goes, in the user's terms: what a sparsity is a share of, a size in bytes, a speed. Imports no torch."""

from collections.abc import Mapping
from typing import Any, Literal

from seap.errors import UserError, one_of
from seap.methods import Method
from seap.shares import written_size

Cost = Literal["params", "bytes", "memory", "milliseconds"]
WORDS: dict[str, str] = {
    "params": "the layers' parameters",
    "bytes": "the bytes of the weights on disk",
    "memory": "the memory of weights and KV cache",
    "milliseconds": "the time of a written token",
}
BY_STEPS = ("memory", "milliseconds")  # that no number of parameters stands for


def implied_cost(size: float | str | None, speed: float | str | None, cost: Cost) -> Cost:
    """What is counted: of a size bytes, of a speed milliseconds. Raises UserError where two things are asked for."""
    one_of("cost", cost, Cost)
    if size is not None and speed is not None:
        raise UserError("--target-size and --target-speed both say how much to remove; leave one of them out")
    implied: Cost = "bytes" if size is not None else "milliseconds" if speed is not None else cost
    if cost not in ("params", implied):
        option = "--target-size" if size is not None else "--target-speed"
        raise UserError(f"{option} counts {implied} by itself; leave out --cost {cost}")
    return implied


def check_target(cost: Cost, method: Method) -> None:
    """Raise UserError for a way to spread over the layers that can't be aimed at this cost."""
    if cost == "params":
        return
    if method.convention != "true" or (cost in BY_STEPS and method.allocate == "iterative"):
        reference = f"--sparsity-convention {method.convention}"
        what = "--allocate iterative" if method.convention == "true" else reference
        raise UserError(
            f"--cost {cost} (and what is asked by --target-size and --target-speed) looks for the widths that meet it, "
            f"and {what} has widths of its own; choose another --method or --allocate"
        )


def target_words(target: Mapping[str, Any]) -> str:
    """`the bytes of the weights on disk 269.1 MB → 199.9 MB (--target-size 200 MB)`"""
    before, after, most = (_written(target["cost"], target[name]) for name in ("before", "after", "most"))
    text = f"{WORDS[target['cost']]} {before} → {after}, at most {most} asked ({target['asked']})"
    if target["cost"] == "milliseconds":
        text += f": {target['before'] / max(target['after'], 1e-12):.2f} times as fast by what was measured here"
    if "context" in target:
        text += f"; {target['context']:,} tokens in the cache, {target['batch']} at a time"
    return text


def _written(cost: str, value: float) -> str:
    return f"{value:.4g} ms" if cost == "milliseconds" else written_size(value)
