"""`ckptavg demo`: the main job on real data."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.printing import Json, keras_session, print_json
from ckptavg.errors import SpecError


def demo(
    directory: Annotated[
        Path, typer.Option("--directory", "-d", metavar="DIR", help="Where everything goes.")
    ] = Path("ckptavg-demo"),
    seed: Annotated[
        int, typer.Option(help="Of the initial weights and the order of the data.", metavar="N")
    ] = 0,
    pictures: Annotated[
        bool, typer.Option(help="Draw the training, the way of the weights, the loss about them.")
    ] = True,
    json: Json = False,
) -> None:
    """See it all on handwritten digits: train, merge, compare, draw."""
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise SpecError(f"the demo needs {package}: pip install 'ckptavg[analysis]'")
    with keras_session():
        from ckptavg.demo import run_demo

        report = run_demo(
            directory, seed=seed, pictures=pictures, say=lambda text: typer.echo(text, err=True)
        )
    if json:
        files = {name: str(path) for name, path in report.files.items()}
        print_json({"seed": report.seed, "scores": report.scores, "files": files})
        return
    typer.echo(f"\n{'':32}  held-out loss  accuracy")
    for name, score in report.scores.items():
        typer.echo(f"{name:32}  {score['loss']:13.4f}  {score['accuracy']:8.4f}")
    typer.echo("\nwritten")
    for name, path in report.files.items():
        typer.echo(f"  {name:16} {path}")
    run, mean, refreshed = (
        shlex.quote(str(report.files[name])) for name in ("run", "average", "with statistics")
    )
    typer.echo(
        "\nthe same by hand, on the run that stands (--overwrite replaces the files above)\n"
        f"  ckptavg merge {run} -o {mean} --overwrite\n"
        f"  ckptavg update-bn {mean} -o {refreshed} --overwrite \\\n"
        "      --model ckptavg.demo:build_model --data ckptavg.demo:bn_data\n"
        f"  ckptavg evaluate {refreshed} \\\n"
        "      --model ckptavg.demo:build_model --data ckptavg.demo:test_data"
    )
