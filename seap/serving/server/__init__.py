"""`seap serve`: an OpenAI-compatible server over one task runtime.

In: HTTP requests. Out: HTTP answers, streamed or whole.

Open `app.py` first: the routes. `run.py` starts and stops; `protocol.py` says what a request may hold, `answers.py`
and `calls.py` turn events into OpenAI's objects; `forward.py` routes to backends instead; `page.html` is the page at
`/`. A request comes through `connections.py` (deadlines; `draining.py` stops), `gate.py` (`hosts.py`, `access.py`:
from whom), `reading.py` and `shape.py` (how large), `tokenizing.py` (how long).

Not here: which rows run when (scheduling/).
"""
