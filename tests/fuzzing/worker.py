"""A process of its own that opens and merges hostile files, for a parent that holds a watch.

HDF5 may run in circles inside C, where nothing but SIGKILL helps, so that this cannot be a thread.
"""

import json
import re
import resource
import select
import subprocess
import sys
import traceback
from pathlib import Path

import xxhash

import ckptavg
from ckptavg.errors import CkptavgError
from ckptavg.formats import open_reader, tensors
from ckptavg.merging import work as strips

SECONDS = 20
"""For one request, which takes a fraction of one."""
GROWTH = 96 * 1024 * 1024
"""Bytes that one request may add to the process."""
_ADDRESSES = 8 * 1024**3


class Worker:
    """The parent's side: asks, waits so long and no longer, starts the process again if need be."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def ask(self, action: str, **arguments) -> dict:
        """What came of an action: `outcome` is the name of an error, or `ok`.

        Raises:
            AssertionError: it took too long or too much memory, the process died, or an exception
                escaped that is none of ckptavg's own.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        request = json.dumps({"action": action, **arguments})
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], SECONDS)[0]:
            self.close()
            raise AssertionError(f"no end after {SECONDS} seconds: {request}")
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self.close()
            raise AssertionError(f"the process died with status {status}: {request}")
        answer = json.loads(line)
        assert "escaped" not in answer, answer["escaped"]
        assert answer["growth"] <= GROWTH, f"{answer['growth']:,} bytes more: {request}"
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def contents(path: Path) -> dict[str, str]:
    """A digest of every tensor of a checkpoint but optimizer state."""
    found = {}
    with open_reader(path) as reader:
        for name, tensor in reader.structure.model_tensors.items():
            assert tensor.nbytes < GROWTH, "the reader lets a tiny file declare this"
            buffer = bytearray(tensor.nbytes)
            reader.read_into(tensor, 0, memoryview(buffer))
            kind = f"{tensor.dtype}{list(tensor.shape)}"
            found[name] = f"{kind} {xxhash.xxh3_128_hexdigest(buffer)}"
    return found


def _merge(
    sources: list[str],
    output: str,
    block: int = 8 * 1024 * 1024,
    interrupt_after: int | None = None,
    **options,
) -> dict[str, str]:
    """Merges; what cannot be read must not be merged, and what was merged is proven by its record.

    Tensors are divided into blocks of `block` bytes; after so many calls of the progress the
    merge is interrupted.
    """
    tensors.BLOCK_SIZE = strips.BLOCK_SIZE = block
    readable = all(map(_readable, sources))
    if interrupt_after is not None:
        options["progress"] = _interrupt(interrupt_after)
    report = ckptavg.merge(sources, output, non_float="last", **options)
    assert readable, "what cannot be read was merged"
    (found,) = ckptavg.verify(report.output)
    assert (found.proof, found.average) == ("intact", "reproduced"), found
    return contents(report.output)


def _convert(source: str, output: str) -> dict[str, str]:
    readable = _readable(source)
    report = ckptavg.convert(source, output)
    assert readable, "what cannot be read was converted"
    return contents(report.output)


def _verify(source: str) -> dict[str, str]:
    (found,) = ckptavg.verify(source)
    return {"proof": found.proof, **contents(Path(source))}


def _readable(source: str) -> bool:
    if Path(source).is_dir():
        return True
    try:
        contents(Path(source))
    except CkptavgError:
        return False
    return True


def _interrupt(after: int):
    seen = []

    def progress(nbytes: int) -> None:
        seen.append(nbytes)
        if len(seen) > after:
            raise KeyboardInterrupt

    return progress


_ACTIONS = {"merge": _merge, "convert": _convert, "verify": _verify}


def _answer(action: str, **arguments) -> dict:
    try:
        return {"outcome": "ok", "tensors": _ACTIONS[action](**arguments)}
    except CkptavgError as error:
        return {"outcome": type(error).__name__, "message": str(error)}
    except KeyboardInterrupt:
        return {"outcome": "interrupted"}
    except BaseException:
        return {"outcome": "escaped", "escaped": traceback.format_exc()}


def _memory(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _memory("VmRSS")
        answer = _answer(**json.loads(line))
        answer["growth"] = _memory("VmHWM") - before
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    _main()
