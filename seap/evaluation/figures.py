"""`seap.evaluate`: a model's figures on its tasks' tests, which print as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from seap.errors import UserError
from seap.evaluation.commands import measure
from seap.evaluation.evaluate import load_test
from seap.evaluation.keywords import EvaluationKeywords
from seap.evaluation.options import Evaluation
from seap.models import loader
from seap.shown import html_table

COLUMNS = ("loss", "perplexity", "accuracy, %", "added loss", "KL to dense", "same first token, %")


@dataclass(frozen=True, repr=False)
class Figures:
    """A row per task, plain values as `seap eval --json` has them."""

    rows: list[dict[str, Any]]

    def __getitem__(self, task: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["task"] == task)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The names of the columns that say something, and the rows."""
        lines = [[row["task"], *_cells(row)] for row in self.rows]
        told = [0, *(i for i in range(1, len(COLUMNS) + 1) if any(line[i] for line in lines))]
        return [("task", *COLUMNS)[i] for i in told], [[line[i] for i in told] for line in lines]

    def __repr__(self) -> str:
        columns, lines = self.cells()
        widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
        rows = (columns, *lines)
        return "\n".join(
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_html_(self) -> str:
        columns, lines = self.cells()
        return html_table("Held-out figures", columns, lines)


def _cells(row: dict[str, Any]) -> list[str]:
    """`2.413 ± 0.021` and so on; empty where nothing was measured."""
    accuracy = f"{100 * row['acc']:.1f} ± {100 * row['acc_stderr']:.1f}" if row.get("acc") is not None else ""
    found = [f"{row['loss']:.3f} ± {row['loss_stderr']:.3f}", f"{row['ppl']:.2f}", accuracy]
    if "dense" not in row:
        return [*found, "", "", ""]
    added = f"{row['added_loss']:+.3f} ± {row['added_loss_stderr']:.3f}"
    return [*found, added, f"{row['kl']:.3f}", f"{100 * row['agreement']:.1f}"]


def evaluate(
    model: Any,
    tokenizer: Any = None,
    *,
    task: str | Sequence[str],
    dense: Any = None,
    device: str = "auto",
    **options: Unpack[EvaluationKeywords],
) -> Figures:
    """Measure a model on the test part of its tasks: `seap.evaluate(model, tokenizer, task="gsm8k=data", dense="M")`.

    model, dense: in memory with its tokenizer, or a folder or Hub name to load onto `device`. dense is the model it was
    pruned from: the rows then have its figures too, what the loss has grown by, and the likeness to it. Other options
    are the fields of `seap.evaluation.options.Evaluation`. Raises UserError for tests that can't be read or measured.
    """
    settings = Evaluation(**options)
    tests = [load_test(spec, settings) for spec in ([task] if isinstance(task, str) else task)]
    if isinstance(model, str):
        model, tokenizer = loader.load_for_work(model, device=device)
    if tokenizer is None:
        raise UserError("a test is read by the model's tokenizer: give it after the model")
    reference, whole = loader.load_for_work(dense, device=device) if isinstance(dense, str) else (dense, None)
    return Figures(measure(model, tokenizer, tests, settings, reference, whole))
