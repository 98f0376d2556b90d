"""The command that says what something is: an artefact, or a model whose family isn't known yet."""

from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from seap.cli.app import Json, app, note, print_json, results
from seap.errors import UserError


@app.command
def inspect(
    path: Annotated[str, Parameter(help="A model folder, pruned or dense, or a statistics or mask file.")],
    /,
    *,
    family: Annotated[
        bool, Parameter(help="Of a model whose family isn't known: propose its row for families.py, and check it.")
    ] = False,
    trust_remote_code: Annotated[
        bool, Parameter(help="With --family: run code that comes with the checkpoint. Only for sources that you trust.")
    ] = False,
    json: Json = False,
) -> None:
    """Explain any artefact: what it is, what made it, and what is in it.

    Example: `seap inspect small`
    """
    if family:
        inspect_family(path, trust_remote_code=trust_remote_code, json=json)
        return
    if trust_remote_code:
        raise UserError(
            "--trust-remote-code is for inspect --family: without it no code would run anyway; leave it out"
        )
    from seap.page.describe import describe, show

    found = describe(path)
    if json:
        print_json(found)
    else:
        show(found, results)


def inspect_family(name: str, *, trust_remote_code: bool, json: bool) -> None:
    """The row that would make a family known, as Python to be pasted, and whether it was right when it was tried."""
    from seap.pruning.proposal import propose

    found = propose(name, trust_remote_code=trust_remote_code)
    if json:
        print_json(found.to_dict())
        return
    if found.text:
        results.print(escape(found.text))
    tried = (
        f"tried on random input: masked and sliced are {found.difference:.0e} of the largest logit apart"
        if found.holds
        else "the row was not found right: mend it by hand, by docs/adding_a_model.md"
    )
    note(tried if found.row else f"no row could be told for {found.model_type}")
    for text in found.told:
        note(f"not told: {text}")
