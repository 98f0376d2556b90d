"""The page of the quality of public models: `seap report` on the cells of results/quality/real_*.json.

    python runs/pages/real_report.py [RESULT] [--model NAME] [--out FILE.html]

A result has several models, a page one; by default the first. Its cells are written as a comparison's rows, which
`seap compare` would have written of the same networks: perplexity from the loss, no widths by layer.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from seap.files import write_json
from seap.page.document import build

RESULT = Path(__file__).resolve().parents[2] / "results" / "quality" / "real_models.json"


def comparison(result: dict[str, Any], model: str) -> dict[str, Any]:
    """The cells of a model as the result of a comparison."""
    rows = [cell | {"ppl": math.exp(cell["loss"]), "layers": []} for cell in result["cells"] if cell["model"] == model]
    own = [row for row in rows if row["method"] != "dense"]
    kept = ("data_hash", "versions", "machine", "commit")
    return {
        "kind": "compare",
        "model": model,
        "tasks": list(dict.fromkeys(row["task"] for row in rows)),
        "methods": list(dict.fromkeys(row["method"] for row in own)),
        "sparsities": sorted({row["target_sparsity"] for row in own}),
        "seeds": len({row["seed"] for row in own}),
        "calibration_tokens": max(row.get("calibration_tokens") or 0 for row in own),
        "rows": rows,
        "overlap": [],
        "options": result["settings"],
        "command": "runs/quality/real_models.sh",
    } | {name: result[name] for name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", nargs="?", type=Path, default=RESULT)
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    model = options.model or result["cells"][0]["model"]
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / f"{options.result.stem}.json"
        write_json(source, comparison(result, model))
        print(build([source], options.out or options.result.with_suffix(".html"), overwrite=True))


if __name__ == "__main__":
    main()
