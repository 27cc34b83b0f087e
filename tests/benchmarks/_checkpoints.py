"""Checkpoints written by Keras, and commands that run over them."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _processes import measure
from _rounds import Case

Model = Mapping[str, int]


def worker(name: str, *arguments: object, python: str = sys.executable) -> list[object]:
    return [python, Path(__file__).parent / "_workers" / f"{name}.py", *arguments]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints of one model.

    Attributes:
        model: arguments of `build` in `_workers/model.py`.
        recorded: the files, with records beside them.
        bare: hard links to them in a folder without records.
        folder: where they are, and where outputs go.
    """

    model: Model
    recorded: Sequence[Path]
    bare: Sequence[Path]
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of one checkpoint."""
        return self.recorded[0].stat().st_size

    def __str__(self) -> str:
        return f"{len(self.recorded)} x {self.size / 1e6:,.{0 if self.size > 1e8 else 1}f} MB"

    def first(self, count: int) -> "Checkpoints":
        return Checkpoints(self.model, self.recorded[:count], self.bare[:count], self.folder)

    def cat(self, name: str = "cat") -> Case:
        command = ["sh", "-c", 'exec cat "$@" > /dev/null', "sh", *self.recorded]
        return Case(name, command, self.recorded)

    def ckptavg(self, name: str, *options: object, proven: bool = True) -> Case:
        inputs = self.recorded if proven else self.bare
        output = self.folder / "out" / "mean.weights.h5"
        command = [sys.executable, "-m", "ckptavg", "merge", *inputs, "-o", output, "--json"]
        return Case(name, [*command, *options], inputs, output, self._checker(output))

    def keras_loop(self, name: str, *, slow: bool = False) -> Case:
        output = self.folder / "out" / "mean.weights.h5"
        command = worker("keras_loop", json.dumps(self.model), output, *self.recorded)
        return Case(name, command, self.recorded, output, self._checker(output), slow)

    def loop(
        self,
        name: str,
        program: str,
        *,
        reads: str = ".weights.h5",
        writes: str = ".weights.h5",
        python: str = sys.executable,
    ) -> Case:
        """Another program's way, over copies in the format `reads` if that is not Keras' own."""
        inputs = self.recorded if reads == ".weights.h5" else self._converted(reads, python)
        output = self.folder / "out" / f"mean{writes}"
        command = worker(program, output, *inputs, python=python)
        return Case(name, command, inputs, output, self._checker(output, python))

    def _checker(self, output: Path, python: str = sys.executable) -> list[object]:
        return worker("misrounded", output, *self.recorded, python=python)

    def _converted(self, suffix: str, python: str) -> list[Path]:
        folder = self.folder / suffix.removeprefix(".")
        if not folder.exists():
            folder.mkdir()
            measure(worker("convert", suffix, folder, *self.recorded, python=python))
            os.sync()
        return sorted(folder.iterdir())


@contextmanager
def checkpoints(folder: Path, model: Model, count: int) -> Iterator[Checkpoints]:
    """Makes checkpoints in a folder of their own, and removes it in the end."""
    print(f"making {count} checkpoints of {dict(model)}", file=sys.stderr)
    recorded, bare = folder / "recorded", folder / "bare"
    recorded.mkdir(parents=True)
    bare.mkdir()
    try:
        measure(worker("make", json.dumps(model), count, recorded))
        files = sorted(recorded.glob("*.weights.h5"))
        for file in files:
            (bare / file.name).hardlink_to(file)
        os.sync()  # so that no run competes with the disk for these files
        yield Checkpoints(model, files, sorted(bare.iterdir()), folder)
    finally:
        shutil.rmtree(folder)
