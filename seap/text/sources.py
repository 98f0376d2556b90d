"""Which files and folders a run reads, so that no output is put in their place."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from seap.disk.place import at_home
from seap.models.loader import BUILTIN, model_path
from seap.text.tasks import parse_spec


def sources_of(name: str | None, specs: Sequence[str] = (), files: Iterable[Path | None] = ()) -> dict[str, Path]:
    """What is read, by what it is called in an error: the model, the tasks' texts, and other files."""
    found = {}
    if name is not None:
        path = model_path() if name == BUILTIN else at_home(name)
        if path.is_file() or (path / "config.json").is_file():
            found["the model"] = path
    for spec in map(parse_spec, specs):
        if spec.path is not None:
            found[f"the texts of {spec.name}"] = spec.path
    return found | {f"the input {path}": path for path in files if path is not None}
