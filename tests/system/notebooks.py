"""Executes notebooks in a clean kernel of this very interpreter; as a program, refreshes them.

    python -m tests.system.notebooks [notebooks/01_swa_on_digits.ipynb ...]

writes their outputs back, without what tells of the machine.
"""

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
CELL_SECONDS = 600

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""Of a committed notebook: nothing that depends on who ran it."""

_STARTUP = re.compile(r"(WARNING: All log messages before absl|[IWE]\d{4} ).*\n?")
"""Lines that TensorFlow logs of the machine when it is imported."""


class ThisInterpreter(KernelSpecManager):
    """Kernels of the interpreter that runs this, whatever others the machine has on offer."""

    def __init__(self, python: Sequence[str]) -> None:
        super().__init__()
        self._python = python

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002
        command = [*self._python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def execute(
    path: Path, folder: Path, python: Sequence[str] = (sys.executable,), before: str = ""
) -> nbformat.NotebookNode:
    """Runs all cells of a notebook.

    Args:
        path: the notebook, which is left as it is.
        folder: that the kernel works in, and that holds whatever Jupyter writes.
        python: what the kernel is started with.
        before: code that the kernel runs before the first cell.

    Returns:
        The notebook with its new outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    startup = folder / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "before.py").write_text(before)
    os.environ["JUPYTER_RUNTIME_DIR"] = str(folder / ".jupyter")
    environment = os.environ | {
        "IPYTHONDIR": str(folder / ".ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(":"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # draws into the notebook
    }
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisInterpreter(python)),
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment, cleanup_kc=True)  # ends the kernel
    return notebook


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Removes times of execution, and what is of the machine alone, in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if output.get("name") == "stderr":
                output.text = _STARTUP.sub("", output.text).lstrip("\n")
        cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    return notebook


def main(arguments: list[str]) -> Any:
    paths = [Path(argument) for argument in arguments] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            notebook = strip(execute(path, Path(folder)))
        nbformat.write(notebook, path)
        sys.stdout.write(f"{path.name}: {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
