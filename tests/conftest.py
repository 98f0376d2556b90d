"""What every test shares: nothing is fetched, one thread a worker, and seap's hook on transformers."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On AMD's processors MKL's last bits depend on where in memory a matrix lies, which differs between a model that was
# made and itself loaded; tests of equal bits are about our code.
os.environ.setdefault("MKL_CBWR", "AVX2")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers that share the cores wait for each other's threads, many times longer
    os.environ["OMP_NUM_THREADS"] = "1"

import seap  # noqa: F401
from seap import threads

for _name, _value in threads.WAITS.items():  # before torch loads: threads that sleep, for whoever runs one worker alone
    os.environ.setdefault(_name, _value)
