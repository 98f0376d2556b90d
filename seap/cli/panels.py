"""The panels of `--help`: what most need is open, further options are named in a line or two until `--help-all`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from cyclopts import Group, Parameter


@dataclass(frozen=True)
class Folded:
    """Writes a panel as the names of its options; with `--help-all` as any other."""

    everything: ClassVar[bool] = False

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        if Folded.everything:
            from cyclopts.help.formatters import DefaultFormatter

            DefaultFormatter()(console, options, panel)
            return
        names = " ".join(name for entry in panel.entries for name in entry.names[:1])
        if names:
            console.print(f"[bold]{panel.title}[/bold] [dim](explained by --help-all)[/dim]\n  {names}\n")


def _panel(title: str, place: int, *, folded: bool = True) -> Parameter:
    return Parameter(name="*", group=Group(title, sort_key=place, help_formatter=Folded() if folded else None))


Flat = Parameter(name="*")
FlatPromise = _panel("A promise in place of a sparsity", 2, folded=False)
FlatText = _panel("Calibration text", 3, folded=False)
FlatTests = _panel("Tests", 4, folded=False)
FoldedText = _panel("Calibration text", 3)
FoldedTests = _panel("Tests", 4)
FlatLimits = _panel("Limits", 3)
FlatConnections = _panel("Connections", 4)
FlatMachine = _panel("Model and machine", 5)
FlatVocabulary = _panel("Vocabulary", 6)
FlatFiles = _panel("In detail: what is read and written", 8)
FlatDetails = _panel("In detail: how units and widths are chosen", 9)
