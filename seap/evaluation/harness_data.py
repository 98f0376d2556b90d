"""Which tasks of lm-evaluation-harness can read local files, and what makes upstream's columns of theirs."""

import itertools
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seap.errors import UserError
from seap.text.hub import Values


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """A task of the harness that can read local files.

    `home` is its folder below `lm_eval/tasks`, `folders` the names that its data may have, `needs` the columns that
    upstream's prompts read, `convert` what makes them of other columns. A part of `spare` serves where upstream's
    evaluation split isn't there. `note` says in which way the rows given aren't upstream's text. `packages` are what
    upstream's own code of the task imports, and `nltk_data` what it reads of nltk's.
    """

    home: str
    folders: tuple[str, ...]
    needs: tuple[str, ...]
    convert: Callable[[Sequence[Values]], Sequence[Values]] = list
    spare: str | None = None
    note: Callable[[Sequence[Values]], str | None] = lambda rows: None
    packages: tuple[str, ...] = ()
    nltk_data: str | None = None


def _arc(rows: Sequence[Values]) -> list[Values]:
    return [row if "answerKey" in row else _lettered(row) for row in rows]


def _lettered(row: Values) -> Values:
    """question, [choice, …], index as ARC has them: choices with letters, and the gold letter."""
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(f"choices {choices!r:.60}, answer {answer!r}; allowed: a list, and an index into it from 0")
    letters = list(string.ascii_uppercase[: len(choices)])
    return {**row, "choices": {"text": choices, "label": letters}, "answerKey": letters[answer]}


def _hellaswag(rows: Sequence[Values]) -> list[Values]:
    return [row if "endings" in row or "choices" not in row else _with_endings(row) for row in rows]


def _with_endings(row: Values) -> Values:
    """question (`Activity: context`), [choice, …], index as HellaSwag has them; upstream's clean-up changes nothing."""
    activity, colon, context = str(row.get("question")).partition(": ")
    answer, endings = row.get("answer"), row["choices"]
    if not colon or not isinstance(endings, list) or not isinstance(answer, int) or not 0 <= answer < len(endings):
        raise UserError(
            f"question {row.get('question')!r:.60}, choices {endings!r:.60}, answer {answer!r}; allowed: "
            "'Activity: context', a list, and an index into it from 0"
        )
    return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": endings, "label": str(answer)}


def _boolq(rows: Sequence[Values]) -> list[Values]:
    return [row if "label" in row else {**row, "label": int(_truth(row.get("answer")))} for row in rows]


def _truth(answer: Any) -> bool:
    if str(answer).lower() not in ("true", "false"):
        raise UserError(f"answer {answer!r}; allowed: true or false")
    return str(answer).lower() == "true"


def _boolq_note(rows: Sequence[Values]) -> str | None:
    titled = sum(" -- " in str(row.get("passage"))[:200] for row in rows)
    return None if titled > len(rows) / 2 else "the passages lack the titles that SuperGLUE's BoolQ puts before them"


def _pages(rows: Sequence[Values]) -> list[Values]:
    """WikiText's lines as upstream's documents: one for every heading of the first level, which it starts with."""
    if all("page" in row for row in rows):
        return list(rows)
    lines = "".join(row.get("text") or " \n" for row in rows).split("\n")
    starts = [i for i, line in enumerate(lines) if _is_title(line)]
    cuts = [0, *starts, len(lines)]
    pages = ["\n".join(lines[start:end]) for start, end in itertools.pairwise(cuts)]
    return [{"page": page} for page in pages if page.strip()]


def _is_title(line: str) -> bool:
    """` = Name = `, not ` = = Section = = `."""
    joined = line.replace("= = =", "===").replace("= =", "==").strip()
    return joined.startswith("= ") and joined.endswith(" =")


def _pages_note(rows: Sequence[Values]) -> str | None:
    has_unknown = any("<unk>" in str(row.get("text", row.get("page"))) for row in rows)
    return "not the raw WikiText-2 that upstream reads: rare words are <unk>" if has_unknown else None


_ARC = ("question", "choices", "answerKey")

LOCAL: dict[str, LocalTask] = {
    "arc_challenge": LocalTask(home="arc", folders=("arc_challenge", "ai2_arc"), needs=_ARC, convert=_arc),
    "arc_easy": LocalTask(home="arc", folders=("arc_easy",), needs=_ARC, convert=_arc),
    "boolq": LocalTask(
        home="super_glue/boolq",
        folders=("boolq",),
        needs=("passage", "question", "label"),
        convert=_boolq,
        spare="test",  # SuperGLUE's own test part has no labels; a folder without validation has named that one test
        note=_boolq_note,
    ),
    "gsm8k": LocalTask(home="gsm8k", folders=("gsm8k",), needs=("question", "answer")),
    "hellaswag": LocalTask(
        home="hellaswag",
        folders=("hellaswag",),
        needs=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        convert=_hellaswag,
        spare="test",  # upstream's own test part has no labels, so that a folder without validation has named it so
    ),
    "ifeval": LocalTask(
        home="ifeval",
        folders=("ifeval",),
        needs=("key", "prompt", "instruction_id_list", "kwargs"),
        packages=("langdetect", "immutabledict", "nltk"),
        nltk_data="tokenizers/punkt_tab",
    ),
    "openbookqa": LocalTask(
        home="openbookqa", folders=("openbookqa", "obqa"), needs=("question_stem", "choices", "answerKey")
    ),
    "piqa": LocalTask(home="piqa", folders=("piqa",), needs=("goal", "sol1", "sol2", "label")),
    "wikitext": LocalTask(
        home="wikitext", folders=("wikitext", "wikitext2"), needs=("page",), convert=_pages, note=_pages_note
    ),
    "winogrande": LocalTask(
        home="winogrande", folders=("winogrande",), needs=("sentence", "option1", "option2", "answer")
    ),
}
