"""A command line → a call.

In: words. Out: exit code 0, 1 for anything refused, 2 for a wrong command line; results on standard output.

Open `main.py` first (prune, inspect); the other commands are in `stages.py`, `bench.py`, `corpus.py`, `deploy.py`,
`evidence.py`, `frontier.py` and `serving.py`, what they share in `app.py`. `demo.py` is `seap demo`.
Options and defaults are those of each room; what takes long to import is imported when used.

Not here: anything that a Python caller would want.
"""
