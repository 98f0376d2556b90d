"""What MkDocs makes of the repository beside the pages: the commands' reference, from the command line itself."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:runs|results|tests|seap|README|CONTRIBUTING|CHANGELOG)[^)]*\)")


def on_files(files: Any, config: Any) -> Any:
    """Add reference/commands.md."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files of the repository that are no pages become their text."""
    return OUTSIDE.sub(r"\1", markdown)


def commands() -> str:
    """Every command with its options, defaults and help texts."""
    from seap.cli.main import app

    text: str = app.generate_docs(output_format="markdown", heading_level=1, max_heading_level=3)
    return text
