"""Moments and what is kept → what the kept weights do about what is removed.

In: a consumer's weight, its inputs' moments, the inputs that stay. Out: a `Repair`: a bias, or new weights in closed
form, which nothing here puts into a model.

Open `compensate.py` first (bias, ridge). `damped.py` solves its singular systems, `cross.py` fits one stream of
activations to another, for the refit layer after layer.

Not here: which units stay (selection/), and the surgery that uses a repair (pruning/).
"""
