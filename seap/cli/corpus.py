"""The commands that make text: corpus write and answer."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape

from seap.cli.app import Json, Model, Overwrite, app, bars, note, print_json, results
from seap.cli.panels import Flat, FlatMachine
from seap.models.options import Loading
from seap.writing.options import Answering, Writing

corpus = App(name="corpus", help="Make calibration text where you have too little.")
app.command(corpus)


@corpus.command
def write(
    model: Model,
    /,
    *,
    like: Annotated[
        str | None,
        Parameter(help="Examples: a file as of --task (all of it), or NAME or NAME=PATH (its training part)."),
    ] = None,
    about: Annotated[
        str | None, Parameter(help="What the texts are, in words, for a model that takes instructions.")
    ] = None,
    out: Annotated[
        Path, Parameter(help="The JSONL file, which --task NAME=FILE reads; OUT.meta.json tells its origin.")
    ],
    writing: Annotated[Writing, Flat] = Writing(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Have the dense model write calibration text, like your examples or about something; copies and loops are dropped.

    Example: `seap corpus write builtin --like examples.jsonl --num 200 --out texts.jsonl`
    """
    from seap.writing.writing import write_to_file

    told = write_to_file(
        model,
        out,
        writing,
        like=like,
        about=about,
        overwrite=overwrite,
        loading=asdict(loading),
        progress=bars(json=json),
    )
    advice = f"seap prune {model} --task NAME={out}"
    show_written(told, out, f"{told['num_texts']} texts", advice, "what the text should be like", json=json)


@corpus.command
def answer(
    model: Model,
    /,
    *,
    prompts: Annotated[
        str, Parameter(help="Prompts, with or without answers: a file, folder, NAME or NAME=PATH; its training part.")
    ],
    out: Annotated[
        Path, Parameter(help="The JSONL file, which --task NAME=FILE reads; OUT.meta.json tells its origin.")
    ],
    answering: Annotated[Answering, Flat] = Answering(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Have the dense model answer a task's prompts, to calibrate on what it writes; loops and torsos are dropped.

    Example: `seap corpus answer builtin --prompts questions.jsonl --out answers.jsonl`
    """
    from seap.writing.answering import answer_to_file

    told = answer_to_file(
        model, prompts, out, answering, overwrite=overwrite, loading=asdict(loading), progress=bars(json=json)
    )
    what = f"{told['num_answers']} answers to {told['prompts']['num']} prompts"
    advice = f"seap prune {model} --task NAME={out}"
    show_written(told, out, what, advice, "what an answer should be like", json=json)


def show_written(told: dict[str, Any], out: Path, what: str, advice: str, known: str, *, json: bool) -> None:
    """What was written and what was dropped, and what to do with it; `known`: what the dense model knows better."""
    if told["pruned"]:
        note(f"the model is already pruned; the dense one knows more of {known}")
    if json:
        print_json(told | {"out": str(out)})
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in told["rejected"].items() if count) or "none"
    tokens = f"{told['num_tokens']:,} tokens; {told['tried']} written, dropped: {dropped}"
    results.print(escape(f"{out}: {what}, {tokens}"))
    results.print(escape(f"look at some before you rely on them; then: {advice}"))
