"""`python -m seap`, and `torchrun -m seap calibrate …`."""

import sys

from seap.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
