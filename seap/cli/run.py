"""The command that runs recipes: run. Steps that are done aren't done again."""

import contextlib
import io
import json as jsons
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from seap.cli.app import Json, Overwrite, app, call, errors, print_json, results
from seap.cli.recipes import Step, read_recipe
from seap.disk.place import at_home
from seap.errors import UserError

STATE = "recipe state"


@app.command
def run(
    recipe: Annotated[Path, Parameter(help="A YAML file with steps; every command's --save-recipe writes one.")],
    /,
    *,
    plan: Annotated[bool, Parameter(help="Check the recipe and list its steps; start nothing.")] = False,
    again: Annotated[bool, Parameter(help="Run the steps that are done already too.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Run the steps of a recipe one after the other; interrupted, it goes on with the step that it stopped in.

    RECIPE.state.json notes which steps are done. A step is done again when it, or one before it, was changed.

    Example: `seap run recipe.yaml`
    """
    steps, text = read_recipe(recipe)
    if plan:
        show_plan(steps, json=json)
        return
    told = run_steps(recipe, steps, text, again=again, overwrite=overwrite, json=json)
    if json:
        print_json({"recipe": str(recipe), "steps": told})


def show_plan(steps: Sequence[Step], *, json: bool) -> None:
    """The steps as command lines."""
    lines = [" ".join(["seap", *step.words]) for step in steps]
    if json:
        print_json({"steps": lines})
    for number, line in enumerate([] if json else lines, start=1):
        results.print(f"{number}. {escape(line)}")


def run_steps(
    recipe: Path, steps: Sequence[Step], text: str, *, again: bool, overwrite: bool, json: bool
) -> list[dict[str, Any]]:
    """Run what isn't done yet; returns what each step was, its state, and with `json` what it printed."""
    from seap.disk.claim import claimed
    from seap.environment import in_recipe

    state = recipe.with_name(f"{recipe.name}.state.json")
    with claimed(state, STATE):
        done = [] if again else read_state(state)
        keys, told = keys_of(steps), []
        for number, (step, key) in enumerate(zip(steps, keys, strict=True), start=1):
            line = " ".join(["seap", *step.words])
            if done[number - 1 : number] == [key] and _is_there(step):
                errors.print(f"[dim]step {number} of {len(steps)}, done already:[/dim] {escape(line)}")
                told.append({"command": line, "state": "done already"})
                continue
            errors.print(f"[bold]step {number} of {len(steps)}:[/bold] {escape(line)}")
            with in_recipe(line, {"file": recipe.name, "step": number, "content": text}):
                printed = _called(step, overwrite=overwrite, json=json)
            done = [*keys[: number - 1], key]
            write_state(state, done)
            told.append({"command": line, "state": "done", **printed})
    return told


def keys_of(steps: Sequence[Step]) -> list[str]:
    """Of each step: its words and those of all before it, hashed."""
    from seap.files import digest

    keys: list[str] = []
    for step in steps:
        keys.append(digest([keys[-1:], step.words]))
    return keys


def read_state(state: Path) -> list[str]:
    """The keys of the steps that are done."""
    try:
        found = jsons.loads(state.read_text())
        return [str(key) for key in found["done"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def write_state(state: Path, done: Sequence[str]) -> None:
    from seap.environment import versions
    from seap.files import write_json

    now = datetime.now().isoformat(" ", "seconds")
    write_json(state, {"kind": STATE, "versions": versions(), "done": list(done), "changed": now})


def _is_there(step: Step) -> bool:
    """Whether what a step wrote is still there."""
    out = step.values.get("out")
    return not isinstance(out, str) or at_home(out).exists()


def _called(step: Step, *, overwrite: bool, json: bool) -> dict[str, Any]:
    """Run a step; with `json`, what it printed. Raises UserError with the line of the recipe."""
    words = step.words
    if overwrite and step.has("overwrite") and "--overwrite" not in words:
        words.append("--overwrite")
    if not json:
        _located(step, lambda: call(words))
        return {}
    if step.has("json") and "--json" not in words:
        words.append("--json")
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        _located(step, lambda: call(words))
    try:
        return {"result": jsons.loads(caught.getvalue())}
    except ValueError:
        sys.stderr.write(caught.getvalue())
        return {}


def _located(step: Step, work: Callable[[], None]) -> None:
    try:
        work()
    except UserError as error:
        raise step.wrong(error) from error
