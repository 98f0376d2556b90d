"""`seap report`: result files → one HTML page that opens offline, with every chart's PNG and CSV in a folder beside it.

Data flows from `sources` (the files) over `comparison` (their rows against dense) to the `verdict` and the sections;
`document` writes those through `report.html.j2`. Means and errors come from `numbers`, charts from `plots`.

Needs Jinja2 and Matplotlib (`seap[report]`), imported where they are used.
"""

from seap.page.document import build
from seap.page.sources import check

__all__ = ["build", "check"]
