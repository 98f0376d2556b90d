"""Runs examples/first_prune.ipynb from the top in an empty folder, and stores in it what its cells show.

python runs/pages/notebook.py (needs nbclient and ipykernel, of seap[docs]); a minute or two on two cores.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_prune.ipynb"
MOST_BYTES = 300_000


def main() -> None:
    from nbclient import NotebookClient
    from nbformat import read, write

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    found = read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(found, timeout=3600, coalesce_streams=True, resources={"metadata": {"path": folder}}).execute()
        for cell in found["cells"]:
            cell["metadata"] = {}
            if cell["cell_type"] == "code":
                cell["outputs"] = [output for output in map(kept, cell["outputs"]) if output]
        told = json.dumps(found["cells"])
        for place in (folder, str(ROOT), str(Path.home())):
            if place in told:
                at = told.index(place)
                sys.exit(f"an output names a folder of this machine: {told[max(0, at - 300) : at + 100]}")
    found["metadata"] = {name: found["metadata"][name] for name in ("kernelspec", "language_info")}
    found["metadata"]["language_info"] = {"name": "python"}
    if len(told) > MOST_BYTES:
        sys.exit(f"the notebook would have {len(told)} bytes; at most {MOST_BYTES}: make its plots smaller")
    write(found, NOTEBOOK)
    print(f"{NOTEBOOK}: {len(told)} bytes")


def kept(output: Any) -> Any:
    """An output as it is stored; None for notes and progress."""
    if output.get("name") == "stderr":
        return None
    data = output.get("data", {})
    if {"image/png", "text/html"} & data.keys():
        data.pop("text/plain", None)
    if "metadata" in output:
        output["metadata"] = {}
    return output


if __name__ == "__main__":
    main()
