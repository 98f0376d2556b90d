"""What every test shares: nothing is fetched, two threads, and seap's hook on transformers."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import seap  # noqa: F401
