"""What a run would cost: printed in place of it with `--plan`, and said before it starts."""

from collections.abc import Callable
from functools import partial
from typing import Any

from rich.markup import escape
from rich.table import Table

from seap.cli.app import note, print_json, results


def planned(
    estimate: Callable[..., Any], *given: Any, plan: bool, json: bool, **options: Any
) -> Callable[[], None] | None:
    """With --plan print the estimate of a run, and return None: there is nothing more to do. Else what is to be called
    once the run is ready: it says the estimate in a line, and refuses a run that would not fit.

    estimate: makes it, of `given` and `options`.
    """
    from seap.pruning.estimate import begin

    made = partial(estimate, *given, **options)
    if plan:
        print_plan(made(), json=json)
        return None
    return lambda: begin(made(), None if json else note)


def print_plan(estimate: Any, *, json: bool) -> None:
    """Stages with what each takes, and what would be cheaper; then an error where the run would not fit."""
    from seap.pruning.estimate import size, span

    if json:
        print_json(estimate.to_dict())
    else:
        table = Table("stage", title=escape(estimate.line()), title_justify="left", header_style="bold")
        for name in ("tokens", "back", "over the vocabulary", "time"):
            table.add_column(name, justify="right")
        for stage, taken in estimate.stages:
            counts = (stage.forward, stage.backward, stage.positions + stage.backward_positions)
            table.add_row(stage.name, *[f"{count:,.0f}" if count else "–" for count in counts], span(taken.wall))
        results.print(table)
        for what, num_bytes, place in estimate.disk:
            results.print(f"{what}: {size(num_bytes)} in {escape(str(place))}")
        for option, seconds in estimate.cheaper:
            results.print(f"cheaper: {escape(option)}, {span(seconds)}")
    estimate.check()
