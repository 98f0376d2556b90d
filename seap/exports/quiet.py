"""What other libraries do to logging while they work is undone."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(name: str | None = None, level: int | None = None) -> Iterator[None]:
    """Without Python's warnings, and with a logger (by default the root) as it was afterwards; level: of it meanwhile.

    OpenVINO's converter sets the root logger's level, after which nobody else's warnings are seen.
    """
    logger = logging.getLogger(name)
    before = logger.level, list(logger.filters), list(logger.handlers)
    if level is not None:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before[0])
        logger.filters, logger.handlers = before[1], before[2]
