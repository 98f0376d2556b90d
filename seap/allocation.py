"""How the C library keeps memory that was freed, so that the next tensor of its size needn't be zeroed anew.

glibc gives a freed block of more than 32 MB back to the system, and what lies free at the end of its heap too. A batch
of some thousand tokens makes such blocks in every linear: on a CPU a sixth of a forward pass goes into pages that the
system hands out again and again (SmolLM2-135M, 4,096 tokens, one thread: 2.46 ms a token, 2.01 with this). What one
stage of a pruning left lying free the next one has little use for: between them it goes back (`give_back`), and what a
solve frees goes back at once (`giving_back`), since its large matrices are of another size each.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt(3)
KEPT_BLOCK = 128 << 20  # bytes: blocks up to this size are kept
KEPT_END = 512 << 20  # bytes of the heap's end that are
USUAL_BLOCK = 32 << 20  # from which on glibc gives blocks back by itself

_kept: list[Callable[[int, int], int]] = []  # what sets it, once freed blocks are kept


def keep_freed() -> bool:
    """Have glibc keep freed blocks; whether it does. What the user has set in MALLOC_… stays."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    _kept[:] = [mallopt]
    return bool(mallopt(MMAP_THRESHOLD, KEPT_BLOCK)) and bool(mallopt(TRIM_THRESHOLD, KEPT_END))


@contextlib.contextmanager
def giving_back() -> Iterator[None]:
    """Have glibc give blocks of more than 32 MB back as they are freed meanwhile, where it was to keep them."""
    for mallopt in _kept:
        mallopt(MMAP_THRESHOLD, USUAL_BLOCK)
    try:
        yield
    finally:
        for mallopt in _kept:
            mallopt(MMAP_THRESHOLD, KEPT_BLOCK)


def give_back() -> None:
    """Have glibc give what lies free back to the system: between stages, and before an axis's matrices are made, whose
    blocks are of different sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
