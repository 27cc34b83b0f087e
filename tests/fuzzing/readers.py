"""Fuzzes readers, led by coverage: `python tests/fuzzing/readers.py FORMAT [SECONDS]`.

It is run by hand, where atheris is installed (`pip install atheris`). FORMAT is one of those of
`test_fuzz.py`, `record` or `state`. What it finds is raised, and left in the working directory.
"""

import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["ckptavg", "zipfile"]):
    from ckptavg.errors import CkptavgError
    from ckptavg.formats import open_reader, read_state
    from ckptavg.runs.record import Record
from tests.fuzzing.worker import contents
from tests.system.test_fuzz import FORMATS, make_record, managed_by_tensorflow

_MEGABYTES = 3000
"""That the process may have, TensorFlow's own included."""


def main(kind: str, seconds: str = "60") -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name) / "checkpoints", Path(name) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        if kind == "state":
            managed_by_tensorflow(folder)
            victim, read = folder / "checkpoint", partial(read_state, folder)
        elif kind == "record":
            path, _ = FORMATS["weights.h5"]().make(folder, 0, "one")
            victim = make_record(path)
            read = partial(Record.read, victim)
        else:
            path, _ = FORMATS[kind]().make(folder, 0, "one")
            with open_reader(path) as reader:
                victim = reader.files[0]
            read = partial(contents, path)
        (corpus / "seed").write_bytes(victim.read_bytes())

        def one(data: bytes) -> None:
            victim.write_bytes(data)
            with suppress(CkptavgError):
                read()

        limits = [f"-max_total_time={seconds}", "-timeout=20", f"-rss_limit_mb={_MEGABYTES}"]
        atheris.Setup([sys.argv[0], *limits, "-max_len=100000", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
