"""`seap.compare` and `seap.analyze`: results that print as a table and draw themselves, as their page does."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from rich.console import Console

from seap.errors import missing_extra, unknown
from seap.evaluation.options import Evaluation
from seap.evidence.commands import analyze_tasks
from seap.evidence.compare import compare as run
from seap.evidence.plan import Comparison
from seap.page.comparison import join
from seap.page.document import sections_of
from seap.page.parts import Section
from seap.page.plots import Plot, figure
from seap.page.sections.compare_results import main_section
from seap.page.sources import Source
from seap.page.terminal import show_analysis, show_comparison
from seap.pruning.prune import split_options
from seap.selection.keywords import ComparedKeywords
from seap.shares import share
from seap.shown import html_table
from seap.text.keywords import CalibrationKeywords
from seap.text.options import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("seap", "seap-paper", "flap", "wanda-sp")


@dataclass(frozen=True, repr=False)
class Result:
    """What a result file says, `data`, as tables and plots."""

    data: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.data.get("rows") or [])

    @cached_property
    def sections(self) -> list[Section]:
        source = Source(Path(f"{self.data['kind']}.json"), self.data)
        return sections_of([source], join([source]) if self.data["kind"] == "compare" else None)[0]

    @cached_property
    def plots(self) -> dict[str, Plot]:
        """The plots that can be drawn, by name."""
        return {plot.name: plot for section in self.sections for plot in section.plots}

    def plot(self, name: str) -> "Figure":
        """One of `plots`, as a Matplotlib figure (seap[report])."""
        if name not in self.plots:
            raise unknown("plot", name, self.plots)
        try:
            return figure(self.plots[name])
        except ModuleNotFoundError as error:
            raise missing_extra("matplotlib", "report", "a plot") from error

    def __repr__(self) -> str:
        plain: dict[str, Any] = {"force_jupyter": False, "force_terminal": False, "no_color": True}  # in notebooks too
        console = Console(file=io.StringIO(), width=120, highlight=False, **plain)
        (show_comparison if self.data["kind"] == "compare" else show_analysis)(self.data, console)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        data = join([Source(Path(), self.data)]) if self.data["kind"] == "compare" else None
        if data is None:
            return f"<pre>{self!r}</pre>"
        [table] = main_section(data).tables
        rows = [row for group in table.groups for row in group]
        best = [place for place, row in enumerate(rows) if any(cell.best for cell in row)]
        lines = [[f"{cell.text} {cell.note}".strip() for cell in row] for row in rows]
        return html_table(table.caption, table.columns, lines, best)


def compare(
    model: str,
    *,
    task: str | Sequence[str],
    methods: Sequence[str] = METHODS,
    sparsity: float | str | Sequence[float | str] = (0.2, 0.5),
    seeds: int = 1,
    controls: bool = False,
    general: str | None = None,
    out: str | Path = "comparison",
    evaluation: Evaluation | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[ComparedKeywords],
) -> Result:
    """Compare methods on a model's tasks: `seap.compare("builtin", task=["arithmetic"], methods=["seap", "flap"])`.

    model: a folder or Hub name. Rows are kept in the folder `out`, so that an interrupted comparison goes on. Other
    options are those of `seap.prune`, for every method. Raises UserError as `seap compare` does.
    """
    pruning, calibration = split_options(options)
    several = [sparsity] if isinstance(sparsity, float | int | str) else sparsity
    plan = Comparison(
        tasks=(task,) if isinstance(task, str) else tuple(task),
        methods=tuple(methods),
        sparsities=tuple(share("sparsity", one) for one in several),
        seeds=seeds,
        controls=controls,
        general=general,
        calibration=calibration,
        evaluation=evaluation or Evaluation(template=calibration.template, weigh=calibration.weigh),
        pruning=pruning,
    )
    place: Mapping[str, Any] = {"device": device}
    return Result(run(model, plan, Path(out), overwrite=overwrite, loading=place, progress=progress))


def analyze(
    model: str,
    *,
    task: Sequence[str],
    sparsity: Sequence[float] = (0.2, 0.5),
    method: str = "seap-paper",
    embedding: str = "t-SNE",
    num_states: int = 64,
    out: str | Path = "analyze.json",
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[CalibrationKeywords],
) -> Result:
    """See what sets tasks apart inside a model: `seap.analyze("builtin", task=["arithmetic", "calendar"])`.

    model: a folder or Hub name. The result file is `out`. Other options are those of `seap analyze`.
    """
    found = analyze_tasks(
        model,
        list(task),
        Path(out),
        Calibration(**options),
        sparsities=sparsity,
        method=method,
        embedding=embedding,
        num_states=num_states,
        loading={"device": device},
        overwrite=overwrite,
        progress=progress,
    )
    return Result(found)
