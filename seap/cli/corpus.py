"""The commands that make text: corpus write and answer."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape

from seap.cli.app import Flat, Json, Model, Overwrite, app, note, print_json, results
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
    loading: Annotated[Loading, Flat] = Loading(),  # noqa: B008
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
        progress=not json,
    )
    if told["pruned"]:
        note("the model is already pruned; the dense one knows more of what the text should be like")
    if json:
        print_json(told | {"out": str(out)})
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in told["rejected"].items() if count) or "none"
    results.print(
        f"{escape(str(out))}: {told['num_texts']} texts, {told['num_tokens']:,} tokens; "
        f"{told['tried']} written, dropped: {dropped}"
    )
    results.print(
        f"look at some before you rely on them; then: seap prune {escape(model)} --task NAME={escape(str(out))}"
    )


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
    loading: Annotated[Loading, Flat] = Loading(),  # noqa: B008
    overwrite: Annotated[bool, Parameter(help="Replace what --out holds.")] = False,
    json: Json = False,
) -> None:
    """Have the dense model answer a task's prompts, to calibrate on what it writes; loops and torsos are dropped.

    Example: `seap corpus answer builtin --prompts questions.jsonl --out answers.jsonl`
    """
    from seap.writing.answering import answer_to_file

    told = answer_to_file(
        model, prompts, out, answering, overwrite=overwrite, loading=asdict(loading), progress=not json
    )
    if told["pruned"]:
        note("the model is already pruned; what counts is how the dense one answers")
    if json:
        print_json(told | {"out": str(out)})
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in told["rejected"].items() if count) or "none"
    results.print(
        f"{escape(str(out))}: {told['num_answers']} answers to {told['prompts']['num']} prompts, "
        f"{told['num_tokens']:,} tokens; {told['tried']} written, dropped: {dropped}"
    )
    results.print(
        f"look at some before you rely on them; then: seap prune {escape(model)} --task NAME={escape(str(out))} "
        "--weigh generated"
    )
