"""`ckptavg verify`: check files against their digests."""

from dataclasses import replace

import typer

from ckptavg.cli.command import command
from ckptavg.cli.printing import print_json
from ckptavg.merging.verify import INTACT, NOT_RECOMPUTED, REPRODUCED, Verification, verify_each
from ckptavg.merging.verify import verify as verify_all


@command(verify_all, example="ckptavg verify run swa.weights.h5")
def verify(*, paths: tuple[str, ...], json: bool) -> None:
    """Check files against their digests; recompute averages and compare.

    An average whose sources still exist is computed again and compared to the bit. The first
    difference is an error.
    """
    found = []
    for verification in verify_each(paths):
        found.append(verification)
        if not json:
            typer.echo(_line(verification))
    if json:
        print_json({"checkpoints": found})
        return
    unverified = sum(verification.proof != INTACT for verification in found)
    if unverified:
        typer.echo(f"{unverified} of {len(found)} have no record and could not be verified")


def _line(found: Verification) -> str:
    if found.unproven:
        listed = ", ".join(found.unproven)
        return f"{_line(replace(found, unproven=()))}; not proven by its older record: {listed}"
    if found.proof != INTACT:
        return f"{found.path}: readable, but unverified"
    if found.average == REPRODUCED:
        return f"{found.path}: intact, {found.reason}"
    if found.average == NOT_RECOMPUTED:
        return f"{found.path}: intact, not recomputed: {found.reason}"
    return f"{found.path}: intact"
