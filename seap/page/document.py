"""The page itself: which sections it has, its files, its HTML."""

import base64
import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from seap.disk.claim import claimed
from seap.disk.whole import written_together
from seap.errors import UserError
from seap.page import plots
from seap.page.comparison import Comparison, join
from seap.page.parts import Section
from seap.page.sections.analyze import activation_section, map_section, stability_section
from seap.page.sections.bench import speed_section
from seap.page.sections.compare_masks import control_section, cross_section, overlap_section
from seap.page.sections.compare_results import curve_section, main_section, task_section, width_section
from seap.page.sections.compare_written import written_section
from seap.page.sections.limits import limits_section
from seap.page.sections.provenance import provenance_section
from seap.page.sections.sweep import frontier_section, frontier_words
from seap.page.sections.verdict import verdict
from seap.page.sources import Source, read


def build(results: Sequence[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Write the page to `out` and its PNG and CSV files to the folder `<stem>_files` beside it; returns `out`.

    A page that stands there is replaced, with what it made in the folder. Raises UserError for result files that can't
    be shown and for an `out` that would overwrite something else.
    """
    sources = read(results)
    folder = _check_out(out)
    reads = {f"the result {path}": path for path in results}
    page, files = (out, "page"), (folder, "page files")
    with claimed(*page, overwrite=overwrite, inputs=reads), claimed(*files, overwrite=overwrite, inputs=reads):
        return _build(sources, out, folder)


def _build(sources: Sequence[Source], out: Path, folder: Path) -> Path:
    """`build`, once its outputs are known to be fit."""
    compared = [s for s in sources if s.kind == "compare"]
    data = join(compared)
    sections, missing = sections_of(sources, data)
    swept = [s.data for s in sources if s.kind == "sweep"]
    bench = any(s.kind == "bench" and s.data["rows"] for s in sources) or any(
        r.get("speed") for d in swept for r in d["rows"]
    )
    words = (
        [frontier_words(d) for d in swept]
        if swept and not compared
        else verdict(data, compared[0].data if compared else {})
    )
    sections = _distinct_names([*sections, provenance_section(sources, data), limits_section(data, bench, missing)])
    sections = [replace(one, tables=[table.without_empty() for table in one.tables]) for one in sections]
    with written_together([(out, "page"), (folder, "page files")]) as [page, files]:
        images = _write_files(files, sections)
        page.write_text(_html(sections, images, quote(folder.name), words, sources), encoding="utf-8")
    return out


def _check_out(out: Path) -> Path:
    """The folder of the page's files."""
    folder = out.with_name(out.stem + "_files")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: the report is an HTML page, name a file that ends in .html")
    return folder


def sections_of(sources: Sequence[Source], data: Comparison | None) -> tuple[list[Section], list[Section]]:
    """The sections that have something to show, and those that have not."""
    made = [curve_section, main_section, task_section, written_section, width_section, overlap_section, cross_section]
    of_compare: list[Callable[[Comparison], Section]] = [*made, control_section]
    usable = data if data and data.methods else None
    empty = Comparison(rows=[], overlap=[], methods=[], judged=None, tasks=[], seeds=[0], sparsities=[])
    all_of_them = [make(usable or empty) for make in of_compare]
    for kind, makers in (
        ("analyze", (map_section, activation_section, stability_section)),
        ("bench", (speed_section,)),
        ("sweep", (frontier_section,)),
    ):
        chosen = [s for s in sources if s.kind == kind]
        for i, source in enumerate(chosen or [Source(Path(), {"rows": []})]):
            found = [make(source.data) for make in makers]
            all_of_them += [_named(f, source, i) for f in found] if len(chosen) > 1 else found
    shown = [s for s in all_of_them if not s.empty and (usable or s.id != "results")]
    return shown, [s for s in all_of_them if s not in shown]


def _named(section: Section, source: Source, place: int) -> Section:
    """With the file's name, where several files fill the same section."""
    return replace(section, id=f"{section.id}-{place}", title=f"{section.title} ({source.path.name})")


def _distinct_names(sections: Sequence[Section]) -> list[Section]:
    """Plots whose names are safe as file names, each used once."""
    used: set[str] = set()
    for section in sections:
        for i, plot in enumerate(section.plots):
            stem = name = re.sub(r"[^A-Za-z0-9.+-]+", "_", plot.name)[:80]
            for count in range(2, len(used) + 3):
                if name.lower() not in used:
                    break
                name = f"{stem}_{count}"
            used.add(name.lower())
            section.plots[i] = replace(plot, name=name)
    return list(sections)


def _write_files(folder: Path, sections: Sequence[Section]) -> dict[str, dict[str, Any]]:
    """PNG and CSV of every plot, and other tables; returns what the page embeds of each plot."""
    images = {}
    for section in sections:
        for name, content in section.files.items():
            _write_csv(folder / name, content)
        for plot in section.plots:
            light, dark, png = plots.render(plot)
            (folder / f"{plot.name}.png").write_bytes(png)
            _write_csv(folder / f"{plot.name}.csv", [plot.columns, *plot.rows])
            size = {"width": round(plot.width * 96), "height": round(plot.height * 96)}
            images[plot.name] = {"light": _embedded(light), "dark": _embedded(dark)} | size
    return images


def _embedded(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _write_csv(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def _html(
    sections: Sequence[Section], images: Mapping[str, Any], folder: str, words: Sequence[str], sources: Sequence[Source]
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    place = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=place, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    models = list(dict.fromkeys(model_name(str(s.data["model"])) for s in sources if s.data.get("model")))
    title = f"Pruning {' and '.join(models)}" if models else "Pruning report"
    commits = list(dict.fromkeys(s.data["commit"] for s in sources if s.data.get("commit")))
    subtitle = "Made by seap report from " + ", ".join(s.path.name for s in sources)
    subtitle += f"; commit {', '.join(commits)}" if commits else ""
    values = {"title": title, "subtitle": subtitle, "verdict": words, "folder": folder, "images": images}
    return environment.get_template("report.html.j2").render(sections=sections, **values)


def model_name(model: str) -> str:
    """A Hub id as it is, of a path the last part."""
    return Path(model).name if model.startswith((".", "/", "~")) else model
