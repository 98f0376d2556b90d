"""Whether query heads that go within KV groups pay: loss at the same sparsity, with whole groups alone and with heads.

    python runs/quality/query_heads.py MODEL arc_easy=TASKS/arc_easy --texts 50 --sparsity 0.3 0.5 --out FILE

As `whole_blocks.py` does for whole sub-blocks: one ranking for both, `--effort quick`, networks simulated with repairs
of one damping, before any refit; KL and added loss on the task's test part.
"""

from typing import get_args

from whole_blocks import arguments, compare

from seap.methods import Heads

if __name__ == "__main__":
    compare(arguments(__doc__), "query_heads", "heads", get_args(Heads), "query")
