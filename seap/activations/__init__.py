"""Token rows through a model → moments of what every consumer reads.

In: a model's `Arch` and a `Corpus`. Out: statistics, which are axis key → `Moments` (count, mean, M2, second moments),
exact under any split, merge or batch size, and their files (`stats.py`).

Open `calibration.py` first: one forward pass, watched. `layerwise.py` runs a model layer by layer, `accumulator.py`
turns rows into `moments.py`. `distributed.py` and `actors.py` deal the rows out to processes and machines, which
`ranks.py` keeps in touch.

Not here: what the moments are good for (scoring/, compensation/).
"""
