"""What the commands share: options, progress, sizes, and a quiet import of TensorFlow."""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptavg.errors import SpecError
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.record import find_record
from ckptavg.runs.run import CHECKPOINT_FOLDER, open_run

if TYPE_CHECKING:
    from rich.table import Table

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="The model: file.py:callable, package.module:callable or a .keras file; "
        "not needed when the checkpoints come with one.",
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The file to write, .weights.h5 or .keras.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print a report in JSON.")]

Choosing = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        metavar="SPEC",
        help="Held-out data (x, y) that choose, from a callable or an .npz file; needed.",
        show_default=False,
    ),
]
Reporting = Annotated[
    str | None,
    typer.Option(
        "--test-data",
        metavar="SPEC",
        help="Data (x, y) that chose nothing, for a report on the best one.",
        show_default=False,
    ),
]
SameData = Annotated[
    bool,
    typer.Option("--allow-same-data", help="Let --test-data share samples with --eval-data."),
]
Monitor = Annotated[str, typer.Option("--monitor", metavar="NAME", help="Metric that chooses.")]
Mode = Annotated[
    str, typer.Option("--mode", metavar="MODE", help="Best is min, max, or auto: by name.")
]

_UNITS = {"": 1, "B": 1}
_UNITS.update({f"{unit}B": 1000 ** (n + 1) for n, unit in enumerate("KMGT")})
_UNITS.update({f"{unit}IB": 1024 ** (n + 1) for n, unit in enumerate("KMGT")})


def parse_size(text: str) -> int:
    """Bytes of a size such as `96MiB`, `1.5GB` or `100000`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or len(match[1]) > 15 or match[2].upper() not in _UNITS:
        raise typer.BadParameter(f"'{text}' is not a size: write it like 96MiB or 1GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_epochs(text: str) -> list[int]:
    """Epochs of a list such as `16-30` or `16,20,24-26`."""
    epochs: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise typer.BadParameter(f"'{text}' names no epochs: write them like 16-30 or 16,20,24")
        epochs.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return epochs


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def print_json(content: dict[str, Any]) -> None:
    """Prints a report for machines on stdout; numbers that are none become null."""
    typer.echo(json.dumps(_finite(content), indent=2, default=str))


def new_table() -> "Table":
    """An empty table as all commands print them; rich is imported only where there is one."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, header_style="bold")


def print_table(table: "Table") -> None:
    """Prints a table to fit the terminal."""
    from rich.console import Console

    Console(markup=False, highlight=False).print(table)


def model_spec(given: str | None, checkpoint: Path) -> str:
    """The SPEC of the model: the one given, or the one that a checkpoint comes with.

    Raises:
        SpecError: none was given, and the checkpoint comes with none.
    """
    if given is not None:
        return given
    if checkpoint.suffix == ".keras":
        return str(checkpoint)
    found = Checkpoint(checkpoint, find_record(checkpoint)).model_file
    if found is not None:
        return os.path.relpath(found)
    raise SpecError(f"{checkpoint} comes with no model configuration: pass --model SPEC")


def checkpoint_of(path: Path) -> Path:
    """A checkpoint file; of a run, the last one."""
    return open_run(path).checkpoints[-1].path if (path / CHECKPOINT_FOLDER).is_dir() else path


Bar = Callable[[str, int | None], Callable[..., None]]
"""Makes a bar from its description and total; gives what is to be told of progress, in units of the
total, and of samples that were seen meanwhile."""


@contextmanager
def progress_bars() -> Iterator[Bar]:
    """Progress bars on stderr, each shown from its first progress on; none without a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def bar(description: str, total: int | None) -> Callable[[int], None]:
            task = progress.add_task(description, total=total, start=False, visible=False, speed="")
            seen = 0

            def advance(amount: int, samples: int = 0) -> None:
                nonlocal seen
                if not progress.tasks[task].started:
                    progress.start_task(task)
                    progress.update(task, visible=True)
                progress.advance(task, amount)
                seen += samples
                if seen and (elapsed := progress.tasks[task].elapsed):
                    progress.update(task, speed=f"{seen / elapsed:,.0f} samples/s")

            return advance

        yield bar


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Holds back what TensorFlow's libraries say on stderr while they are imported.

    They say it before any setting can stop them. If the import fails, it is printed after all, and
    nothing is held back when TF_CPP_MIN_LOG_LEVEL is set.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def keras_session() -> Iterator[None]:
    """For work with live models: imports Keras; what a user's code prints goes to stderr.

    Standard output is for the report alone, which may be JSON.

    Raises:
        SpecError: Keras or its backend is not installed.
    """
    with redirect_stdout(sys.stderr):
        _import_keras()
        yield


def _import_keras() -> None:
    """Imports Keras with its backend, quietly."""
    try:
        with quiet_tensorflow():
            import keras

            keras.ops.ones(())  # devices are looked for at the first operation
        # Every BatchNorm pass traces a step of its own, on purpose.
        logging.getLogger("tensorflow").addFilter(lambda r: "retracing" not in r.getMessage())
    except ImportError as error:
        raise SpecError(
            f"this needs Keras and TensorFlow, which cannot be imported: {error}"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
