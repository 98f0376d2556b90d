"""Where things lie: the checkout, and the workshop's data beside it, which isn't there for everybody."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
HELPERS = TESTS / "shared"
SHARED = ROOT.parent / "shared"
