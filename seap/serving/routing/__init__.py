"""Prompts → the task that each is of, and how sure.

In: tasks' prompts to learn from, then a user's. Out: a `Route`.

Open `router.py` first: features, distances, thresholds. `routing.py` fits and tests it on `prompts.py`;
`endtoend.py` measures what routing costs in the end.

Not here: running the network (networks/, scheduling/).
"""
