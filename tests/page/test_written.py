"""The page's section on what models write: a table for each task, by hand."""

from pathlib import Path
from typing import Any

from page_example import row

from seap.page.comparison import join
from seap.page.parts import Cell
from seap.page.sections.compare_written import written_section
from seap.page.sources import Source


def test_what_is_written_has_a_table_for_each_task() -> None:
    about: dict[str, Any] = {"acc_metric": "exact match", "acc_stderr": 0.05, "loops_stderr": 0.02}
    said: dict[str, Any] = {"acc_metric": "multiple choice", "acc": 0.5, "said_stderr": 0.06}
    rows = [
        row("dense", "sums", 0, 0, 1.0, **about, acc=0.8, loops=0.0),
        row("dense", "choices", 0, 0, 1.0, **said, said=0.5, endless=0.25),
        row("seap", "sums", 0.5, 0, 1.1, **about, acc=0.6, loops=0.1),
        row("flap", "sums", 0.5, 0, 1.9, **about, acc=0.2, loops=0.9),
        row("seap", "choices", 0.5, 0, 1.1, **said, said=0.4),
        row("seap", "plain", 0.5, 0, 1.1, acc_metric="multiple choice", acc=0.5, acc_stderr=0.1),
    ]
    data = join([Source(Path("compare.json"), {"kind": "compare", "model": "m", "rows": rows})])
    assert data is not None
    section = written_section(data)
    sums, choices = section.tables
    assert (sums.caption, sums.columns) == ("sums", ["method", "removed", "right, %", "loop, %"])
    assert choices.columns == ["method", "removed", "right in free form, %", "don't end, %"]
    dense, pruned = sums.groups
    assert [cell.text for cell in dense[0]] == ["dense", "0%", "80.0", "0.0"]
    assert [cell.text for cell in pruned[0]] == ["seap", "50.0%", "60.0", "10.0"]
    assert pruned[0][2] == Cell("60.0", "± 5.0", best=True) and not pruned[1][2].best and not pruned[1][3].best
    assert "pass@1" in section.texts[0] and "Recall" not in section.texts[0]
    nothing = join([Source(Path("compare.json"), {"kind": "compare", "model": "m", "rows": rows[-1:]})])
    assert nothing is not None and written_section(nothing).empty
