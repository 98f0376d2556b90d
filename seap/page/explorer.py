"""`seap explore`: a page that shows which parts of a model each task uses, and the texts that use a part most."""

import base64
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from seap.disk.claim import claimed
from seap.disk.whole import written_whole
from seap.errors import UserError
from seap.evidence.explore import explore
from seap.files import to_json
from seap.models import loader
from seap.models.options import Streaming
from seap.page.document import model_name
from seap.text.options import Calibration
from seap.text.sources import sources_of

TEMPLATE = Path(__file__).parent / "explorer.html"


def explore_to_page(
    name: str,
    tasks: Sequence[str],
    out: Path,
    calibration: Calibration,
    *,
    num_units: int = 48,
    num_kept: int = 5,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
    streaming: Streaming = Streaming(),  # noqa: B008
    progress: bool = True,
) -> dict[str, Any]:
    """What `explore` finds, and the page of it at `out`, which holds snippets of the tasks' texts."""
    check_page(out, "explore")
    options: dict[str, Any] = {"num_units": num_units, "num_kept": num_kept, "calibration": calibration}
    with claimed(out, "page", overwrite=overwrite, inputs=sources_of(name, tasks)), contextlib.ExitStack() as stack:
        if streaming.stream:
            model, tokenizer = stack.enter_context(loader.loaded(name, out, loading or {}, None, streaming))
        else:
            model, tokenizer = loader.load_for_work(name, **(loading or {}))
        found = explore(model, tokenizer, list(tasks), progress=progress, **options)
        found["model"] = model_name(found["model"])
        with written_whole(out, "page") as draft:
            draft.write_text(page_of(found), encoding="utf-8")
    return found


def check_page(out: Path, command: str) -> None:
    """Raise UserError for the name of a page that no browser would open as one."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: what seap {command} writes is an HTML page, name a file that ends in .html")


def page_of(found: Mapping[str, Any]) -> str:
    """The page: no code but its own runs in it, whatever the texts say, and nothing is fetched."""
    template = TEMPLATE.read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    told = {name: value for name, value in found.items() if name not in ("versions", "machine", "command")}
    data = to_json(told).replace("<", "\\u003c")
    title = escape(f"What tasks use of {found['model']}")
    return template.replace("{{hash}}", digest).replace("{{title}}", title).replace("{{data}}", data)
