"""`ckptavg verify`: hold checkpoints against their records."""

from dataclasses import asdict
from typing import Annotated

import typer

from ckptavg.cli.printing import Json, print_json
from ckptavg.merging.verify import INTACT, NOT_RECOMPUTED, REPRODUCED, Verification, verify_each


def verify(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Runs, checkpoint files, quoted patterns, or folders of checkpoints.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Prove checkpoints by their records, averages by their sources.

    An average whose sources still stand is computed again and compared to the bit. The first thing
    that is not as recorded is an error.
    """
    found = []
    for verification in verify_each(paths):
        found.append(verification)
        if not json:
            typer.echo(_line(verification))
    if json:
        print_json({"checkpoints": [asdict(verification) for verification in found]})
        return
    unverified = sum(verification.proof != INTACT for verification in found)
    if unverified:
        typer.echo(f"{unverified} of {len(found)} have no record: nothing is proven of them")


def _line(found: Verification) -> str:
    if found.proof != INTACT:
        return f"{found.path}: readable, but unverified"
    if found.average == REPRODUCED:
        return f"{found.path}: intact, {found.reason}"
    if found.average == NOT_RECOMPUTED:
        return f"{found.path}: intact, not recomputed: {found.reason}"
    return f"{found.path}: intact"
