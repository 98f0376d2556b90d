"""Results of `seap.compare` and `seap.analyze` in a notebook: one table each, not printed beside it."""

import pytest
import rich.console
from page_example import TASKS, compare

from seap.page.compared import Result


def test_a_result_is_text_where_rich_would_print_to_the_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Result(compare(tasks=TASKS[:2], seeds=1))
    plain = repr(result)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "seap" in plain and repr(result) == plain and "\x1b" not in plain
    assert capsys.readouterr().out == "" and "<table>" in result._repr_html_()
