"""Requests → rows that are decoded together.

In: tickets (`tickets.py`) from clients. Out: tokens, event by event, as the model makes them.

Open `scheduler.py` first: whose turn it is. `rows.py` steps the rows of one network, `steps.py` finds the
row that makes the model raise, `telling.py` tells tokens to whom they belong, `fairness.py` lets clients take turns.

Not here: HTTP (server/), the networks themselves (networks/).
"""
