"""A command line → a call.

In: words. Out: exit code 0, or 1 for anything refused; results on standard output.

Open `prune.py` first; the other commands are in `inspecting.py`, `look.py` (explore, diff), `stages.py`, `bench.py`,
`corpus.py`, `deploy.py`, `evidence.py`, `frontier.py`, `run.py` and `serving.py`; `main.py` calls them. What they share
is in `app.py`, `globals.py`, `panels.py` (the help), `mistakes.py`, `plan.py` (cost), `words.py` (options as words and
as a file's values) and `recipes.py`. `demo.py` is `seap demo`.
Options and defaults are those of each room; what takes long to import is imported when used.

Not here: anything that a Python caller would want.
"""
