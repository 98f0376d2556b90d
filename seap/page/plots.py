"""Charts of the report. Each is drawn once, in light colours; the dark version is the same SVG with swapped colours.

Needs Matplotlib (`seap[report]`), imported where it is used; `sources.read` has seen that it is there.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, ON_DEEP = "#1f2328", "#59636e", "#dfe3e8", "#fefefe"
# Okabe and Ito's colours, darkened where they are too pale for white; light: dark.
BLUE, SKY, RED, ORANGE = "#0068a8", "#3fa7dd", "#d55e00", "#d99100"
PURPLE, GREY, GREEN, BROWN = "#b8578f", "#767676", "#008a64", "#8a5a2b"
METHODS = {"seap": BLUE, "seap-gen": SKY, "flap": RED, "wanda-sp": ORANGE, "magnitude": PURPLE, "random": GREY}
SPARE = (GREEN, BROWN, PURPLE, SKY, ORANGE, RED, GREY)
TASKS = ("#332288", "#117733", "#aa4499", "#44aa99", "#8f8f2e", "#cc6677", "#882255", "#b59b2c")
RAMP = ("#f1f6fb", "#dbe8f4", "#c0d8ec", "#9fc4e2", "#79add5", "#5394c5", "#3279b0", "#175e97", "#08447a")
MARKERS = "osD^vPX*<>hp"
DARK = {
    **{INK: "#e6edf3", MUTED: "#9aa4af", GRID: "#30363d", ON_DEEP: "#0c1117"},
    **{BLUE: "#4aa8f0", SKY: "#9bdcff", RED: "#ff8748", ORANGE: "#ffc34d"},
    **{PURPLE: "#eb9cc8", GREY: "#a9b1ba", GREEN: "#35cfa0", BROWN: "#cb9d6c"},
    **dict(zip(TASKS, "#9a90ff #62c782 #e08ad0 #6fd8c6 #cfcf5e #f29aa8 #dc6a9f #ecd97a".split(), strict=True)),
    **dict(zip(RAMP, "#161d26 #1a2a3b #1d3850 #214867 #285c83 #3273a3 #4590c6 #66afe4 #93cfff".split(), strict=True)),
}
FONT = "system-ui, sans-serif"

Draw = Callable[["Axes"], None]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A chart, the numbers in it (for its CSV) and what it shows in words. Sizes are inches."""

    name: str
    title: str
    alt: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    draw: Draw
    width: float = 4.7
    height: float = 3.4


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: y ± error over x."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    colour: str = BLUE
    marker: str = "o"


def method_styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method; a known method has its colour on every page."""
    taken = {METHODS[m] for m in methods if m in METHODS}
    spare = [c for c in SPARE if c not in taken] or list(SPARE)
    others = [m for m in methods if m not in METHODS]
    colours = METHODS | {m: spare[i % len(spare)] for i, m in enumerate(others)}
    return {m: (colours[m], MARKERS[i % len(MARKERS)]) for i, m in enumerate(methods)}


def task_styles(tasks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each task."""
    return {task: (TASKS[i % len(TASKS)], MARKERS[i % len(MARKERS)]) for i, task in enumerate(tasks)}


def lines(
    series: Sequence[Series], *, x: str, y: str, ticks: Sequence[float] = (), log: bool = False, zero: bool = False
) -> Draw:
    """Lines with error bars. None hides another: points at one x stand a little apart, equal lines alternate."""

    def draw(ax: "Axes") -> None:
        from matplotlib.lines import Line2D
        from matplotlib.transforms import ScaledTranslation

        if log:
            ax.set_xscale("log", base=2)
        for i, one in enumerate(series):
            shift = (i - (len(series) - 1) / 2) * 2.2 / 72 if any(s.error for s in series) else 0
            place = ax.transData + ScaledTranslation(shift, 0, ax.figure.dpi_scale_trans)
            style: dict[str, Any] = {"color": one.colour, "marker": one.marker}
            twins = [j for j, other in enumerate(series) if list(other.y) == list(one.y)]
            turn, count = twins.index(i), len(twins)
            style |= {"ls": (-6 * turn, (6, 6 * (count - 1))) if count > 1 else "-", "markevery": (turn, count)}
            style |= {"ms": 4, "lw": 1.5, "elinewidth": 1, "transform": place}
            ax.errorbar(one.x, one.y, yerr=list(one.error) or None, **style)
            errors = one.error or [0.0] * len(one.x)
            # Matplotlib doesn't count what has a transform of its own when it chooses the limits.
            ax.update_datalim([(a, b + s * e) for a, b, e in zip(one.x, one.y, errors, strict=True) for s in (-1, 1)])
        ax.autoscale_view()
        ax.set(xlabel=x, ylabel=y)
        if len(ticks):
            ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
            ax.minorticks_off()
        elif x == "layer":
            ax.locator_params(axis="x", integer=True)
        if zero:
            ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        keys = [Line2D([], [], color=s.colour, marker=s.marker, ms=4, lw=1.5, label=_label(s.label)) for s in series]
        _legend(ax, keys)

    return draw


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    x: str = "",
    y: str = "",
    scale: tuple[float, float] | None = None,
) -> Draw:
    """A table of numbers, deeper colour for a larger one (over `scale`, or what is there); None is left blank."""

    def draw(ax: "Axes") -> None:
        import numpy as np
        from matplotlib.colors import ListedColormap

        data = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
        known = data[np.isfinite(data)]
        low, high = scale or ((known.min(), known.max()) if known.size else (0, 0))
        low, high = (low, high) if high > low else (low - 1, high + 1)
        masked = np.ma.masked_invalid(data)
        ax.pcolormesh(masked, cmap=ListedColormap(RAMP), vmin=low, vmax=high, edgecolors="none")
        size = min(8.5, 76 / len(columns))
        for (i, j), value in np.ndenumerate(data):
            if np.isfinite(value):
                deep = (value - low) / (high - low) >= 6 / len(RAMP)
                text = f"{value:.2f}".replace("-", "−")
                ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", size=size, color=ON_DEEP if deep else INK)
        ax.set_xticks([j + 0.5 for j in range(len(columns))], [_label(c) for c in columns], rotation=40, ha="right")
        ax.set_yticks([i + 0.5 for i in range(len(rows))], [_label(r) for r in rows])
        ax.set(xlabel=x, ylabel=y)
        ax.invert_yaxis()
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)

    return draw


def dots(
    labels: Sequence[str],
    values: Sequence[float],
    errors: Sequence[float],
    *,
    x: str,
    colours: Sequence[str],
    line: float | None = None,
    chance: Sequence[float | None] = (),
) -> Draw:
    """One dot ± error per label, from top to bottom, with its number beside it; a grey tick where chance would be."""

    def draw(ax: "Axes") -> None:
        places = range(len(labels))
        for place, value, error, colour in zip(places, values, errors, colours, strict=True):
            ax.errorbar(value, place, xerr=error, fmt="o", ms=6, color=colour, elinewidth=1.5)
            number = f"{value:.3f}".replace("-", "−")
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "color": INK, "fontsize": 8.5}
            ax.annotate(number, (value, place), (0, 6), **above)
        for place, expected in enumerate(chance):
            if expected is not None:
                ax.plot(expected, place, "|", color=GREY, ms=12, mew=2)
        if line is not None:
            ax.axvline(line, color=MUTED, lw=1, ls=":")
        ax.set_yticks(list(places), [_label(text) for text in labels])
        ax.set_ylim(len(labels) - 0.4, -0.7)
        ax.margins(x=0.12)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(x)

    return draw


def scatter(points: Sequence[tuple[float, float, str]], styles: Mapping[str, tuple[str, str]]) -> Draw:
    """Points (x, y, task) coloured by task; the axes of such a map have no unit."""

    def draw(ax: "Axes") -> None:
        for task, (colour, marker) in styles.items():
            own = [(x, y) for x, y, name in points if name == task]
            if own:
                xs, ys = zip(*own, strict=True)
                ax.scatter(xs, ys, s=11, color=colour, marker=marker, alpha=0.75, lw=0, label=_label(task))
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(True)
        _legend(ax, ax.get_legend_handles_labels()[0])

    return draw


def bars(batches: Sequence[int], ratios: Sequence[float], ceilings: Sequence[float | None]) -> Draw:
    """Measured ratio per batch size; a line over each bar marks its ceiling."""

    def draw(ax: "Axes") -> None:
        places = range(len(batches))
        ax.bar(places, ratios, width=0.5, color=BLUE, label="measured")
        for place, ratio, ceiling in zip(places, ratios, ceilings, strict=True):
            ax.annotate(
                f"×{ratio:.2f}", (place, ratio), (0, -12), textcoords="offset points", ha="center", color=ON_DEEP
            )
            if ceiling is not None:
                label = "ceiling" if place == 0 else None
                ax.plot([place - 0.35, place + 0.35], [ceiling] * 2, color=RED, lw=2.5, label=label)
        ax.axhline(1, color=INK, lw=1, ls="--", label="dense")
        ax.set_xticks(list(places), [str(b) for b in batches])
        ax.set(xlabel="batch size", ylabel="tokens/s, pruned ÷ dense")
        ax.grid(axis="x", visible=False)
        _legend(ax, ax.get_legend_handles_labels()[0])

    return draw


def relief(values: Sequence[Sequence[float]], *, x: str, y: str) -> Draw:
    """Layers × bins of log₂ ratios: orange above 0, blue below, nothing at 0, full colour from ±1 on."""

    def draw(ax: "Axes") -> None:
        import numpy as np
        from matplotlib.colors import to_rgb

        image = np.zeros((len(values), max(map(len, values)), 4))
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                image[i, j] = (*to_rgb(RED if value > 0 else SKY), min(1.0, abs(value)))
        ax.imshow(image, aspect="auto", interpolation="nearest")
        ax.locator_params(axis="y", integer=True)
        ax.set(xlabel=x, ylabel=y)
        ax.grid(False)
        ax.spines[:].set_visible(True)

    return draw


def figure(plot: Plot) -> "Figure":
    """The chart alone, with its title, to be shown or saved by whoever asked for it."""
    with look():
        from matplotlib.figure import Figure

        made = Figure(figsize=(plot.width, plot.height), layout="constrained")
        axes = made.add_subplot()
        plot.draw(axes)
        axes.set_title(plot.title, fontsize=10)
        return made


def render(plot: Plot) -> tuple[str, str, bytes]:
    """The light SVG, the dark SVG and a PNG with white ground."""
    with look():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(plot.width, plot.height), layout="constrained")
        plot.draw(figure.add_subplot())
        text, image = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, dpi=144, metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # the places just found hold for the PNG too
        figure.savefig(image, format="png", dpi=160, facecolor="white")
    light = re.sub(r"'DejaVu Sans'[^;\"]*", FONT, text.getvalue())
    light = re.sub(r"<!--.*?-->|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", light, flags=re.DOTALL)
    light = re.sub(r"\s*\n\s*", "\n", light)
    return light, darkened(light), image.getvalue()


def darkened(svg: str) -> str:
    """The SVG with each of our light colours replaced by its dark partner."""
    return re.sub("|".join(DARK), lambda found: DARK[found[0]], svg)


@contextmanager
def look() -> Iterator[None]:
    """Our look, and no warning about a letter that the font for measuring lacks: the browser has its own."""
    import matplotlib

    own: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "seap", "text.parse_math": False}
    own |= {"font.family": "DejaVu Sans", "font.size": 9.5, "axes.labelcolor": MUTED, "text.color": INK}
    own |= {"xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5}
    own |= {"axes.edgecolor": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8}
    own |= {"axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7, "axes.axisbelow": True}
    own |= {"legend.frameon": False, "legend.fontsize": 8.5, "legend.handlelength": 1.6}
    with matplotlib.rc_context(own), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def _legend(ax: "Axes", keys: Sequence[Any]) -> None:
    if len(keys) > 1:
        columns = 4 if max(len(str(key.get_label())) for key in keys) < 11 else 3
        ax.figure.legend(handles=keys, loc="outside lower center", ncols=columns, columnspacing=1.2, markerscale=1.2)


def _label(text: str) -> str:
    """Short enough for a chart; Matplotlib would hide one that begins with an underscore."""
    text = " ".join(text.split())
    text = text if len(text) <= 24 else text[:23] + "…"
    return " " + text if text.startswith("_") else text
