"""The page at `/`."""

from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_text()
