"""Models → tokens per second, beside what the machine allows.

In: dense and pruned models, or public shapes with random weights. Out: prefill and decode speed, their ratio, and the
ceiling of that ratio in bytes or FLOPs.

Open `bench.py` first (`seap bench`); `speed.py` holds the clock, `profile.py` looks at kernels,
`calibration.py` measures what calibrating costs.

Not here: quality (evaluation/).
"""
