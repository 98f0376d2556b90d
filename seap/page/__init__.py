"""Results → something to look at: an HTML page (`seap report`) and tables in a terminal.

In: result files, checkpoints, reports. Out: one HTML page that opens offline, every chart's PNG and CSV in a folder
beside it; a page of one model to click through (`explorer.py`); what `seap inspect` and `seap diff` say
(`describe.py`, `difference.py`); tables (`terminal.py`).

Open `document.py` first. Data flows from `sources.py` (the files) over `comparison.py` (their rows against dense) to
the verdict and the other `sections/`; means and errors come from `numbers.py`, charts from `plots.py`. Jinja2 and
Matplotlib (`seap[report]`) are imported where they are used.

Not here: measuring anything.
"""
