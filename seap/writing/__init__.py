"""A model and a few examples → calibration text of its own.

In: examples or a description. Out: texts that the dense model wrote, sieved (`seap corpus write`).

Open `writing.py` first, for answers to a task's own prompts (`seap corpus answer`) `answering.py`; `author.py` prompts
and samples (`sampling.py`), `sieve.py` decides what is kept.

Not here: reading tasks (text/).
"""
