"""A task's texts → the tokens that it needs, and the model and tokenizer with those alone.

In: a model, its tokenizer, the tasks' training items, and how many tokens may stay (`--vocabulary`). Out: the ids that
stay, a tokenizer that reads any text with them, and embedding and output layer cut to their rows.

Open `choosing.py` first: the way from texts to a choice. `described.py` sees a tokenizer by its tokenizer.json,
`counts.py` counts and holds texts out, `expected.py` asks the model which others may come, `closure.py` orders tokens
so that every beginning of the order is closed under the merges, `measuring.py` says what such a beginning costs,
`rewriting.py` makes the tokenizer, `embedding.py` cuts.

Not here: when in a pruning that happens (pruning/).
"""
