"""Moments and weights → how much every unit matters.

In: an axis, its consumer's weight, its moments. Out: one score per input, summed per unit (a KV group, a channel).

Open `score.py` first: every score by name, with paper and equation. `obs.py` scores by the error that is left after
reconstruction; `sensitivity.py` weighs outputs by how much the loss moves with them; `first_order.py` scores by
gradients, `influence.py` whole layers.

Not here: how many units stay, and which (selection/).
"""
