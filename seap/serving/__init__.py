"""Task networks → one runtime, a router, a server.

In: a dense model and what each task's network keeps and repairs of it. Out: answers, each from its task's network.

Four rooms in the order of the data: `networks/` (files and runtime), `routing/` (which task a prompt is of: open
`routing/router.py`), `scheduling/` (which rows are decoded together), `server/` (HTTP, OpenAI's protocol).
`commands.py` is route fit, predict and eval over files; `options.py` has the limits.

Not here: making masks (selection/), engines of others (exports/).
"""
