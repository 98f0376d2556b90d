"""Data sets of the SEAP paper on the Hugging Face Hub: where they are, and what their columns mean.

`columns` turns one upstream row into the columns that `tasks.py` accepts. `corpus` makes the calibration
text of the SEAP paper (its code: src/data_preparation/task_processors.py, column `corpus`) from that row and
its gold answer; where it is None, that text is question + " " + gold choice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seap.errors import UserError, missing_extra
from seap.text.code import humaneval_item, mbpp_item, mbpp_part
from seap.text.readers import Row, paragraphs
from seap.text.shapes import Item

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HubTask:
    """One data set; `test` is its split with public labels, `needs` the columns and types it is known by.

    `train` is empty where there is none. `item` makes the whole item where columns don't say it. `part` says which part
    a row belongs to, of a file that holds them all. `is_continued` as of `Item`.
    """

    path: str
    config: str | None = None
    train: str = "train"
    test: str = "test"
    needs: Mapping[str, tuple[type, ...]]
    columns: Callable[[Values], Values] = dict
    item: Callable[[Values], Item] | None = None
    part: Callable[[Values], str | None] | None = None
    corpus: Callable[[Values, str], str] | None = None
    regroup: Callable[[list[Row]], list[Row]] | None = None
    is_continued: bool = False

    @property
    def source(self) -> str:
        return f"hub:{self.path}@{self.config}" if self.config else f"hub:{self.path}"


def fetch(name: str, split: str) -> list[Row]:
    """The rows of "train" or "test" from the Hub. Raises UserError when they, or `datasets`, can't be had."""
    try:
        import datasets  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise missing_extra("datasets", "hub", f"task {name!r}") from error
    task = TASKS[name]
    upstream = task.train if split == "train" else task.test
    if not upstream:
        raise no_train_part(name)
    try:
        found = datasets.load_dataset(task.path, task.config, split=upstream)
    except Exception as error:  # the Hub, the network and the cache each raise their own
        raise UserError(
            f"task {name!r}: couldn't fetch {task.source} split {upstream} "
            f"({type(error).__name__}: {error}); with a local copy give {name}=PATH"
        ) from error
    return [Row(f"{task.source} {upstream} row {i}", dict(row)) for i, row in enumerate(found, start=1)]


def no_train_part(name: str) -> UserError:
    return UserError(f"task {name!r} has a test part alone, which never calibrates; calibrate on another task like it")


def fetch_any(dataset: str) -> dict[str, Any]:
    """The parts (train, validation, test, those that are there) of any data set, owner/name or owner/name:config.

    Raises UserError when they, or `datasets`, can't be had, and for a data set without a train or validation part.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "hub", f"hub:{dataset}") from error
    path, _, config = dataset.partition(":")
    try:
        found = datasets.load_dataset(path, config or None)
    except Exception as error:  # as above
        raise UserError(
            f"hub:{dataset}: couldn't be fetched ({type(error).__name__}: {error}); with several configurations name "
            "one as hub:owner/name:config, with a local copy give NAME=PATH"
        ) from error
    parts = {part: found[part] for part in ("train", "validation", "test") if part in found}
    if not parts:
        raise UserError(f"hub:{dataset} has the parts {', '.join(found)}; one must be named train")
    return parts


def rows_of(dataset: str, part: str, rows: Any) -> list[Row]:
    """The rows of one part."""
    return [Row(f"hub:{dataset} {part} row {i}", dict(row)) for i, row in enumerate(rows, start=1)]


def _gsm8k(row: Values) -> Values:
    return {"question": row["question"], "answer": row["answer"]}


def _gsm8k_corpus(row: Values, gold: str) -> str:
    return f"Question: {row['question']}\n{row['answer']}"


def _arc(row: Values) -> Values:
    return {"question": row["question"], "choices": row["choices"], "answer": row["answerKey"]}


def _openbookqa(row: Values) -> Values:
    return {"question": row["question_stem"], "choices": row["choices"], "answer": row["answerKey"]}


def _openbookqa_corpus(row: Values, gold: str) -> str:
    fact = row.get("fact1")
    lead = f"{fact.capitalize()}. " if isinstance(fact, str) and fact.strip() else ""
    return f"{lead}{row['question_stem']} {gold}"


def _piqa(row: Values) -> Values:
    return {"question": row["goal"], "choices": [row["sol1"], row["sol2"]], "answer": row["label"]}


def _piqa_corpus(row: Values, gold: str) -> str:
    return f"{row['goal']} {gold.capitalize()}"


def _hellaswag(row: Values) -> Values:
    return {"question": row["ctx"], "choices": row["endings"], "answer": row["label"]}


def _winogrande(row: Values) -> Values:
    """The sentence up to its blank is the question, each option with the rest of the sentence a choice."""
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise UserError("the sentence has no blank '_'")
    choices = [row["option1"] + after, row["option2"] + after]
    return {"question": before.rstrip(), "choices": choices, "answer": _option(row) - 1}


def _winogrande_corpus(row: Values, gold: str) -> str:
    return str(row["sentence"]).replace("_", row[f"option{_option(row)}"])


def _option(row: Values) -> int:
    answer = str(row["answer"]).strip()
    if answer not in ("1", "2"):
        raise UserError(f"answer {row['answer']!r}; allowed: 1 or 2")
    return int(answer)


def _boolq(row: Values) -> Values:
    answer = str(row["answer"]).strip().lower()
    if answer not in ("true", "false"):
        raise UserError(f"answer {row['answer']!r}; allowed: true or false")
    question = f"{row['passage']}\nQuestion: {row['question'].capitalize()}?"
    return {"question": question, "choices": ["no", "yes"], "answer": int(answer == "true")}


def _boolq_corpus(row: Values, gold: str) -> str:
    return f"{row['passage']}\nQuestion: {row['question'].capitalize()}? {gold.capitalize()}"


def _text(row: Values) -> Values:
    return {"text": row["text"]}


def _articles(rows: list[Row]) -> list[Row]:
    """WikiText's lines as texts: headings (` = Name = `) count as blank, and blanks separate the texts."""
    lines = [line.strip() for row in rows for line in _lines(row)]
    texts = paragraphs("" if _is_heading(line) else line for line in lines)
    return [Row(f"text {number}", {"text": text}) for number, text in enumerate(texts, start=1)]


def _lines(row: Row) -> list[str]:
    text = row.values["text"]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{row.where}: text is {text!r:.60}, a {type(text).__name__}; it must be a string")
    return (text or "").strip().split("\n")


def _is_heading(line: str) -> bool:
    line = line.strip()
    return len(line) > 3 and line.startswith("= ") and line.endswith(" =")


_ARC = {"question": (str,), "choices": (dict, list, str), "answerKey": (str,)}

TASKS: dict[str, HubTask] = {
    "arc_challenge": HubTask(path="allenai/ai2_arc", config="ARC-Challenge", needs=_ARC, columns=_arc),
    "arc_easy": HubTask(path="allenai/ai2_arc", config="ARC-Easy", needs=_ARC, columns=_arc),
    "boolq": HubTask(
        path="google/boolq",
        test="validation",
        needs={"question": (str,), "passage": (str,), "answer": (bool, str)},
        columns=_boolq,
        corpus=_boolq_corpus,
    ),
    "gsm8k": HubTask(
        path="openai/gsm8k",
        config="main",
        needs={"question": (str,), "answer": (str,)},
        columns=_gsm8k,
        corpus=_gsm8k_corpus,
    ),
    "hellaswag": HubTask(
        path="Rowan/hellaswag",
        test="validation",
        needs={"ctx": (str,), "endings": (list, str), "label": (str, int)},
        columns=_hellaswag,
        is_continued=True,
    ),
    "humaneval": HubTask(
        path="openai/openai_humaneval",
        train="",
        needs={"prompt": (str,), "canonical_solution": (str,), "test": (str,), "entry_point": (str,)},
        item=humaneval_item,
        part=lambda row: "test",
    ),
    "mbpp": HubTask(
        path="google-research-datasets/mbpp",
        config="full",
        needs={"text": (str,), "code": (str,), "test_list": (list,), "task_id": (int,)},
        item=mbpp_item,
        part=mbpp_part,
    ),
    "openbookqa": HubTask(
        path="allenai/openbookqa",
        config="additional",  # "main" has no fact1
        needs={"question_stem": (str,), "choices": (dict, list, str), "answerKey": (str,)},
        columns=_openbookqa,
        corpus=_openbookqa_corpus,
        is_continued=True,
    ),
    "piqa": HubTask(
        path="baber/piqa",  # the parquet copy that lm-evaluation-harness reads; ybisk/piqa is a script
        test="validation",
        needs={"goal": (str,), "sol1": (str,), "sol2": (str,), "label": (int, str)},
        columns=_piqa,
        corpus=_piqa_corpus,
    ),
    "wikitext2": HubTask(
        path="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        needs={"text": (str,)},
        columns=_text,
        regroup=_articles,
    ),
    "winogrande": HubTask(
        path="allenai/winogrande",
        config="winogrande_xl",
        test="validation",
        needs={"sentence": (str,), "option1": (str,), "option2": (str,), "answer": (str, int)},
        columns=_winogrande,
        corpus=_winogrande_corpus,
        is_continued=True,
    ),
}
