"""What all rows of a folder of `real_models.py` have in common, and the refusal of others."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seap.environment import provenance
from seap.evaluation.options import Evaluation
from seap.files import write_json
from seap.selection.options import Pruning
from seap.text.options import Calibration

BEFORE = {"calibration": {"wording": "plain"}}  # what options were by default before a folder's settings named them


@dataclass(frozen=True)
class Settings:
    """What every row of a folder has in common; another folder is for another setting."""

    calibration: Calibration
    evaluation: Evaluation
    pruning: Pruning
    answer_items: int  # of tasks whose answers are generated
    answer_tokens: int
    off_windows: int  # of every other task
    dtype: str
    run_code: bool  # said anew for every run
    prompts: str  # of multiple choice

    def of(self, metric: str) -> Evaluation:
        found = replace(self.evaluation, run_generated_code=self.run_code)
        if metric not in ("exact-match", "pass@1"):
            return found
        return replace(found, num_items=self.answer_items, max_new_tokens=self.answer_tokens)


def settings_there(out: Path) -> dict[str, Any]:
    """What the folder's rows were made with; options that are newer than it have the values that they had without."""
    path = out / "settings.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    before = {"prompts": "own"} | found["settings"]
    for name, kind in (("calibration", Calibration), ("evaluation", Evaluation), ("pruning", Pruning)):
        before[name] = asdict(kind()) | BEFORE.get(name, {}) | before[name]
    return found | {"settings": before}


def check_settings(out: Path, settings: Settings, models: dict[str, str]) -> None:
    """End with what differs where the folder's rows were made with other settings."""
    path = out / "settings.json"
    now = json.loads(json.dumps(asdict(settings)))
    del now["run_code"]
    there = settings_there(out) or {"models": {}, "settings": now}
    was, told = flat(json.loads(json.dumps(there["settings"]))), flat(now)
    differing = [f"{name} {was.get(name)} → {told[name]}" for name in told if told[name] != was.get(name)]
    differing += [f"{n} {there['models'][n]} → {p}" for n, p in models.items() if there["models"].get(n, p) != p]
    if differing:
        raise SystemExit(f"{out} has rows of other settings ({'; '.join(differing)}); name another --out")
    about = {"kind": "real settings", "settings": now, "models": there["models"] | models}
    write_json(path, about | provenance())


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """`evaluation.num_items` → its value."""
    found = {}
    for group, value in settings.items():
        found |= {f"{group}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {group: value}
    return found
