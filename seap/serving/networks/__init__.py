"""Networks of tasks → one model that switches among them.

In: masks and repairs of each task (`packing.py` makes the files: `seap pack`). Out: a `TaskRuntime` (`runtime.py`) over
one copy of the dense weights.

Open `network.py` first, then `runtime.py`. `order.py` and `placement.py` lay units out as slices of one weight;
`packed.py` has what is no linear, such as experts; `sharing.py` makes repairs of low rank.

Not here: choosing the task (routing/).
"""
