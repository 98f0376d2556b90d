"""What MkDocs makes of the repository beside the pages: the commands' reference, from the command line itself, the
notebook with what its cells printed, where that is stored in it, and the changelog."""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:runs|results|tests|seap|README|CONTRIBUTING|CHANGELOG)[^)]*\)")
ROOT = Path(__file__).parents[2]


def on_files(files: Any, config: Any) -> Any:
    """Add reference/commands.md, howto/first_prune_notebook.md and changelog.md."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/commands.md", content=commands()))
    found = notebook(ROOT / "examples" / "first_prune.ipynb")
    files.append(File.generated(config, "howto/first_prune_notebook.md", content=found))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=changes))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files of the repository that are no pages become their text."""
    return OUTSIDE.sub(r"\1", markdown)


def commands() -> str:
    """Every command with its options, defaults and help texts."""
    from seap.cli.main import app

    text: str = app.generate_docs(output_format="markdown", heading_level=1, max_heading_level=3)
    return text


def notebook(path: Path) -> str:
    """A notebook as a page: its texts, its code, and what each cell printed when it was last run."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [shown(output) for output in cell.get("outputs", [])]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(output: dict[str, Any]) -> str:
    """An output as HTML: a table, a picture, or text; nothing for what went to standard error."""
    data = output.get("data", {})
    if "text/html" in data:
        return "".join(data["text/html"])
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if output.get("name") == "stderr":
        return ""
    text = "".join(data.get("text/plain", output.get("text", [])))
    return f"<pre>{escape(text)}</pre>" if text else ""
