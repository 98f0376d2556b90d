"""Options of a promise: `seap prune --max-loss 1%` and its like. Imports no torch, so that --help is quick."""

from dataclasses import dataclass

from seap.errors import UserError
from seap.shares import Share


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A bound on held-out damage, in place of a sparsity: the largest sparsity that keeps within it is found."""

    max_loss: float | str | None = None
    """Most that the held-out loss may grow by, relative to the dense model's: 1% or 0.01."""
    max_acc_drop: float | str | None = None
    """Most points of held-out accuracy that may be lost: 0.5pt or 0.005."""
    min_agreement: float | str | None = None
    """Least share of held-out tokens whose first choice is the dense model's: 99% or 0.99."""
    confidence: Share = 0.95
    """That the promise is kept on text that was not seen."""
    resolution: Share = 0.025
    """Steps of sparsity that are tried."""
    max_sparsity: Share = 0.9
    """Largest sparsity that is tried."""

    def __post_init__(self) -> None:
        given = [_flag(name) for name in PROMISES if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are two promises; one can be kept at a time, leave out the others")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"--confidence {self.confidence}: must be at least 0.5 and below 1, such as 0.95")
        if not 0 < self.resolution <= self.max_sparsity < 1:
            raise UserError(
                f"--resolution {self.resolution} and --max-sparsity {self.max_sparsity}: both must be above 0 and "
                "below 1, the resolution the smaller one"
            )
        if given:
            assert self.bound > 0

    @property
    def kind(self) -> str | None:
        """Which promise was asked for: max_loss, max_acc_drop or min_agreement."""
        return next((name for name in PROMISES if getattr(self, name) is not None), None)

    @property
    def bound(self) -> float:
        """As a fraction of damage: min_agreement 99% is 0.01 of disagreement."""
        assert self.kind is not None
        found = _fraction(self.kind, getattr(self, self.kind))
        return round(1 - found, 12) if self.kind == "min_agreement" else found

    @property
    def sparsities(self) -> tuple[float, ...]:
        """What is tried, growing."""
        count = int(self.max_sparsity / self.resolution + 1e-9)
        return tuple(round(self.resolution * i, 6) for i in range(1, count + 1))

    @property
    def words(self) -> str:
        """`the loss grows by at most 1%`"""
        if self.kind == "max_loss":
            return f"the loss grows by at most {100 * self.bound:.3g}%"
        if self.kind == "max_acc_drop":
            return f"accuracy falls by at most {100 * self.bound:.3g} points"
        return f"at least {100 * (1 - self.bound):.5g}% of tokens keep the dense model's first choice"


PROMISES: dict[str, tuple[str, ...]] = {
    "max_loss": ("%",),
    "max_acc_drop": ("points", "point", "pts", "pt", "pp"),
    "min_agreement": ("%",),
}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _fraction(name: str, value: float | str) -> float:
    """`1%`, `0.5pt` or `0.01` as a fraction. A bare number from 0.2 on is refused where it may be meant as points."""
    example = {"max_loss": "1% or 0.01", "max_acc_drop": "0.5pt or 0.005", "min_agreement": "99% or 0.99"}[name]
    text = str(value).strip().lower()
    unit = next((unit for unit in PROMISES[name] if text.endswith(unit)), "")
    try:
        number = float(text.removesuffix(unit)) / (100 if unit else 1)
    except ValueError:
        raise UserError(f"{_flag(name)} {value}: expected a number such as {example}") from None
    if name == "max_acc_drop" and not unit and 0.2 <= number < 1:
        raise UserError(f"{_flag(name)} {value}: points or a share? Write {number:g}pt or {100 * number:g}pt")
    if not 0 < number < 1:
        raise UserError(f"{_flag(name)} {value}: must be above 0 and below 1, or have its unit, such as {example}")
    return number
