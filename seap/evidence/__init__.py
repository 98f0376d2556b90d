"""Many networks → comparisons, frontiers and promises.

In: a model, tasks, methods, sparsities. Out: result files that say which method loses how much, how tasks differ
inside a model, and the largest sparsity that keeps a promise.

Open `plan.py` and `compare.py` first (`seap compare`). `analyze.py` and `agreement.py` look at masks, `explore.py`
at what tasks use; `frontier.py` and `sweep.py` try many sparsities on one calibration; `promise.py` has the bounds,
`heldout.py` the damage text by text, `promised.py` the search.

Not here: drawing (page/).
"""
