"""Scores and a sparsity → units kept per axis → masks.

In: scores, and statistics of one task or several. Out: `Masks`, axis key → bool per unit (True keeps).

Open `ranking.py` first: what is known before a sparsity is chosen, and what makes masks of it. `allocate.py` spreads
the sparsity over the layers, by formula or by damage (`curves.py` in closed form, `damage.py` measured), with
`widths.py`, `knapsack.py` and `search.py`; `steps.py`, `behind.py` and `whole_layers.py` are other ways (GISP,
Wanda-sp, ShortGPT); `mask.py` picks the units; `mixture.py` puts several texts behind one network; `usage.py` is about
experts, `timing.py` about milliseconds, `repairing.py` about what is left while networks are compared. `options.py`
holds the options of a pruning.

Not here: cutting (pruning/).
"""
