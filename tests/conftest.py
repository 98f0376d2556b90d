"""What every test shares: nothing is fetched, one thread a worker, and seap's hook on transformers."""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers that share the cores wait for each other's threads, many times longer
    os.environ["OMP_NUM_THREADS"] = "1"

import seap  # noqa: F401
from seap import threads

for _name, _value in threads.WAITS.items():  # before torch loads: threads that sleep, for whoever runs one worker alone
    os.environ.setdefault(_name, _value)


@pytest.fixture(autouse=True)
def _loggers_stay_as_they_were() -> Iterator[None]:
    """What a library does to logging in one test, by its import even, isn't to silence seap in the next ones."""
    root = logging.getLogger()
    before, disabled = root.level, logging.root.manager.disable
    yield
    root.setLevel(before)
    logging.disable(disabled)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "seap" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
