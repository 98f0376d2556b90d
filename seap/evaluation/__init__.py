"""A model and a task's test → figures.

In: a model, dense or pruned, and test items. Out: loss, perplexity, accuracy by choice or by generation, likeness to
the dense model; rows for tables.

Open `evaluate.py` first: a test (`load.py`), prepared once, and one model's figures on it. `metrics.py` has likelihoods
and losses, `choices.py` and `answers.py` what is chosen and said, `generations.py` what is written, `code.py` and
`programs.py` what programs pass, `likeness.py` KL and agreement, `harness.py` lm-evaluation-harness. `commands.py` is
`seap eval` over files.

Not here: comparing many networks (evidence/).
"""
