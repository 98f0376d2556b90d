"""Tasks that a router of a tiny model tells apart."""

import json
import random
from pathlib import Path

from toy import WORDS

from seap.serving.options import Routing

OPTIONS = Routing(num_prompts=40)


def tasks_files(folder: Path) -> list[str]:
    """Three tasks of words of their own, each with a template around them."""
    rng = random.Random(0)
    specs = []
    for place, name in enumerate(("red", "green", "blue")):
        words = WORDS[5 + place * 25 : 30 + place * 25]
        rows = [f"{WORDS[place]} {' '.join(rng.choices(words, k=6))} {WORDS[3]}" for _ in range(60)]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": row, "answer": WORDS[4]}) for row in rows))
        specs.append(f"{name}={path}")
    return specs
