"""Where things lie: the checkout, and the workshop's data beside it, which isn't there for everybody."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
HELPERS = TESTS / "shared"
SHARED = Path(os.environ.get("SEAP_SHARED", ROOT.parent / "shared"))
REAL = Path(os.environ.get("SEAP_REAL", ROOT.parent / "real"))  # folders of public models
