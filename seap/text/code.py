"""Items whose answer is a program: HumanEval and MBPP as a model is asked for them, with the checks that it must pass.

Without a chat template a model goes on with code, as both sets are used with base models: after HumanEval's head, or
after a docstring with MBPP's task and tests. In a chat it is asked in words, and its answer is begun for it, with a
fenced block.
"""

from typing import Any

from seap.errors import UserError
from seap.text.shapes import Item
from seap.text.turns import asked_and_answered

Values = dict[str, Any]
OPENED = "```python\n"  # as lm-evaluation-harness and EvalPlus begin the answer


def humaneval_item(row: Values) -> Item:
    """A row of openai/openai_humaneval."""
    head, solution = row["prompt"], row["canonical_solution"]
    asked = f"Write a solution to the following problem and make sure that it passes the tests:\n{fenced(head)}"
    return Item(
        text=head + solution,
        prompt=head,
        answer=solution,
        head=head,
        checks=f"{row['test']}\n\ncheck({row['entry_point']})\n",
        turns=asked_and_answered(asked, fenced(head + solution)),
        lead=OPENED,
    )


def mbpp_item(row: Values) -> Item:
    """A row of google-research-datasets/mbpp."""
    tests, task = [str(test).strip() for test in row["test_list"]], row["text"].strip()
    if not tests:
        raise UserError("test_list is empty; a program needs a check that it must pass")
    code = row["code"].replace("\r\n", "\n").replace("\t", "    ").strip() + "\n"
    listed = "\n".join(tests)
    prompt = f'"""\n{task}\n{listed}\n"""\n'
    asked = f"Write a Python program for this task:\n{task}\nIt must pass these tests:\n{fenced(listed)}"
    setup = (row.get("test_setup_code") or "").replace("\r\n", "\n")
    return Item(
        text=prompt + code,
        prompt=prompt,
        answer=code,
        checks=f"{setup}\n{listed}\n".lstrip(),
        turns=asked_and_answered(asked, fenced(code)),
        lead=OPENED,
    )


def fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"


def mbpp_part(row: Values) -> str | None:
    """Upstream's parts by the number of the task; None for the ten that prompts are made of."""
    number = row["task_id"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"task_id {number!r}; MBPP's are numbers")
    parts = (("test", range(11, 511)), ("validation", range(511, 601)), ("train", range(601, 975)))
    return next((name for name, numbers in parts if number in numbers), None)
