"""What is done with mutated files, and what must come of it: an error of ours, or what is right."""

import contextlib
import json
import math
import os
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest import mock

import google_crc32c
import numpy as np

import ckptavg
from ckptavg.errors import CkptavgError, CkptavgWarning
from ckptavg.formats import CheckpointReader, ModelConfig, open_reader, read_state, tensors
from ckptavg.formats.tensors import STRING, TensorInfo, is_float
from ckptavg.merging import work
from ckptavg.merging.exact_mean import round_once
from ckptavg.models.specs import as_data
from ckptavg.saving.run_writer import read_rates
from tests.fuzzing.corpus import NAMES, SCORES, SIGMA, one_hot, open_scores
from tests.fuzzing.farm import ALONE, EQUAL, Case, Check, WrongError
from tests.fuzzing.mutations import Special, mutate
from tests.fuzzing.reference import Reference, described
from tests.helpers.command_line import main as command_line

DESCRIPTORS = Path("/proc/self/fd")
_HUGE = 1024**3
Contents = dict[str, np.ndarray]
"""The tensors of a checkpoint by name, without optimizer state."""


@dataclass
class Bench:
    """Where the cases of one process are run.

    Attributes:
        corpus: the intact files, a folder for each subject.
        folder: of this process.
        reference: other libraries.
    """

    corpus: Path
    folder: Path
    reference: Reference = field(default_factory=Reference)
    _intact: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """An empty folder for what a case writes."""
        path = self.folder / "output"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def check(self, case: Case) -> str:
        """Runs one case; when it fails its files are left as they are."""
        subject, folder = SUBJECTS[case.subject], self.folder / case.subject
        intact = self._prepared(subject, folder)
        victims = {n: w for n in intact if (w := subject.victims(n))}
        changed = mutate(Random(f"{case} files"), intact, victims)
        for name, content in changed.items():
            if isinstance(content, Special):
                content.make(folder / name)
            else:
                (folder / name).write_bytes(content)
        descriptors = len([*DESCRIPTORS.iterdir()])
        try:
            outcome = subject.check(self, folder, Random(f"{case} actions"))
        except CkptavgError:
            self._tidy(subject, folder, intact, changed, descriptors)
            raise
        self._tidy(subject, folder, intact, changed, descriptors)
        return outcome

    def recheck(self, case: Case, files: Path) -> str:
        """Runs a case with the files that it left when it failed."""
        folder = self.folder / case.subject
        folder.mkdir(parents=True)
        subprocess.run(["cp", "-a", f"{files}/.", folder], check=True)
        return SUBJECTS[case.subject].check(self, folder, Random(f"{case} actions"))

    def _prepared(self, subject: "Subject", folder: Path) -> dict[str, bytes]:
        if subject.name not in self._intact:
            shutil.copytree(self.corpus / subject.name, folder)
            subject.prepare(folder)
            self._intact[subject.name] = _files(folder)
        return self._intact[subject.name]

    def _tidy(
        self,
        subject: "Subject",
        folder: Path,
        intact: Mapping[str, bytes],
        changed: Mapping[str, bytes | Special],
        descriptors: int,
    ) -> None:
        """Makes the folder as it was, and sure that nothing else was changed or left open."""
        now = _files(folder)
        expected = {n: c for n, c in {**intact, **changed}.items() if isinstance(c, bytes)}
        for name in now.keys() - intact.keys():
            (folder / name).unlink()
        for name, content in intact.items():
            if now.get(name) != content:
                _remove(folder / name)
                (folder / name).write_bytes(content)
        if not subject.writes_here and now != expected:
            odd = [n for n in now.keys() | expected.keys() if now.get(n) != expected.get(n)]
            raise WrongError(f"a source was changed: {sorted(odd)}")
        if (count := len([*DESCRIPTORS.iterdir()])) > descriptors + 2:  # of the reference
            raise WrongError(f"{count - descriptors} files were left open")


def start(corpus: Path, scratch: Path) -> Check:
    """What a new process does first; what it gives runs cases."""
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", CkptavgWarning)
    return Bench(corpus, scratch / str(os.getpid())).check


class Subject:
    """A kind of files.

    Attributes:
        name: of its folder in the corpus, and of its row in the table.
        writes_here: whether what is done with the files may change them.
    """

    writes_here = False

    def __init__(self, name: str) -> None:
        self.name = name

    def victims(self, name: str) -> int:
        """How often a file is changed, compared with the others."""
        return 1

    def prepare(self, folder: Path) -> None:
        """Makes what must be made in the folder itself."""

    def check(self, bench: Bench, folder: Path, random: Random) -> str:
        """Does something with the files: what came of it, unless an error tells."""
        raise NotImplementedError


class Checkpoints(Subject):
    """Two checkpoints of one model, of which the first is changed."""

    def __init__(self, name: str, suffix: str, library: str) -> None:
        super().__init__(name)
        self._suffix = suffix
        self._library = library
        self._recorded = name.startswith("recorded")

    def victims(self, name: str) -> int:
        return 0 if name.startswith(NAMES[1]) else 2

    def check(self, bench: Bench, folder: Path, random: Random) -> str:
        one, two = (folder / f"{name}{self._suffix}" for name in NAMES)
        error, found = None, {}
        try:
            found = contents(one)
        except CkptavgError as caught:
            error = caught
        for share, action in ((0.3, self._merge), (0.15, self._verify), (0.05, self._convert)):
            if random.random() < share:
                with contextlib.suppress(CkptavgError):
                    done = action(bench, one, two, found)
                    if error and done:
                        raise WrongError(f"{action.__name__} took what cannot be read: {error}")
        if random.random() < 0.05:
            _run_program("inspect", one)
        if error:
            raise error
        return self._compare(bench, one, found)

    def _compare(self, bench: Bench, path: Path, found: Contents) -> str:
        """Every tensor, the optimizer's too, must be what the library of the format reads."""
        with open_reader(path) as reader:
            named = reader.structure.tensors
            ours = {
                name: described(t.shape, t.numpy_dtype.itemsize, _bytes_of(reader, t))
                for name, t in named.items()
                if t.dtype != STRING
            }
        shapes = {name: tensor.shape for name, tensor in named.items()}
        theirs = bench.reference.read(self._library, path, shapes)
        if theirs is None:
            return ALONE
        for name in sorted(ours):
            other = theirs.get(name)
            if other is not None and other != ours[name]:
                raise WrongError(f"'{name}' is {ours[name]}, but {other} to {self._library}")
        if more := sorted(theirs.keys() - named.keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}):
            raise WrongError(f"'{more[0]}' is missing, which {self._library} finds")
        return EQUAL if all(theirs.get(name) for name in ours) else ALONE

    def _merge(self, bench: Bench, one: Path, two: Path, found: Contents) -> bool:
        options = {"model": two} if self._suffix == ".keras" else {}
        output = bench.output
        try:
            report = ckptavg.merge(
                [one, two], output / f"mean{self._suffix}", non_float="last", **options
            )
        except CkptavgError:
            if left := sorted(path.name for path in output.iterdir()):
                raise WrongError(f"a merge that failed left {left}") from None
            raise
        sources = [source.path.name for source in report.plan.sources]
        intact = [contents(bench.corpus / self.name / name) for name in sources]
        read = [contents(two) if name.startswith(NAMES[1]) else found for name in sources]
        _assert_same(contents(report.output), mean(intact if self._recorded else read))
        # Of what has no mean, the last checkpoint's is taken.
        averaged = {name for name, value in found.items() if is_float(value.dtype.name)}
        if not self._recorded and self._unproven(bench, one, averaged):
            raise WrongError("a merge took bytes that are not what their checksums say")
        return True

    def _verify(self, bench: Bench, one: Path, two: Path, found: Contents) -> bool:
        (verified,) = ckptavg.verify(one)
        if verified.proof != "intact":
            return False
        if self._recorded:
            _assert_same(found, contents(bench.corpus / self.name / one.name))
        if self._unproven(bench, one, found.keys()):
            raise WrongError("intact, though bytes are not what their checksums say")
        return True

    def _convert(self, bench: Bench, one: Path, two: Path, found: Contents) -> bool:
        report = ckptavg.convert(one, bench.output / f"copy{self._suffix}")
        _assert_same(contents(report.output), found)
        return True

    def _unproven(self, bench: Bench, path: Path, names: Set[str]) -> bool:
        """Whether the checksums of the format itself tell of damage to tensors or the model."""
        if self._suffix == ".keras":
            try:
                with zipfile.ZipFile(path) as archive:
                    for name in archive.namelist():
                        with archive.open(name) as member:  # as a whole it may seem huge
                            while not name.endswith("/") and member.read(1 << 16):
                                pass
            except Exception:  # zipfile raises nearly anything
                return True
            return False
        if self._library != "tensorflow":
            return False
        with open_reader(path) as reader:
            stored, held = reader.checksums, reader.structure.model_tensors
            return any(
                google_crc32c.value(bytes(_bytes_of(reader, held[name]))) != stored[name]
                for name in names
            )


class Runs(Subject):
    """A run of a training, with all that lies in it, and an average of it."""

    def victims(self, name: str) -> int:
        if name.endswith(".h5"):
            return 1
        return 6 if name in ("run/history.jsonl", "run/saver.json", "run/model.json") else 3

    def check(self, bench: Bench, folder: Path, random: Random) -> str:
        run = folder / "run"
        share = random.random()
        if share < 0.25:
            _check_side_files(run)
        elif share < 0.55:
            self._merge(bench, folder, random)
        elif share < 0.65:
            self._check_average(bench, folder)
        elif share < 0.75:
            for found in ckptavg.verify(run):
                _assert_same(contents(found.path), self._intact(bench, folder, found.path))
        elif share < 0.85:
            report = ckptavg.merge(run, bench.output / "mean.keras", non_float="last")
            _assert_configured(report.output, run / "model.json")
        else:
            commands = [("inspect", run), ("inspect", run, "--json"), ("recipes", run)]
            commands += [("doctor", run), ("merge", run, "-o", bench.output / "x", "--dry-run")]
            command = random.choice(commands)
            _run_program(*command)
        return EQUAL

    def _merge(self, bench: Bench, folder: Path, random: Random) -> None:
        options = random.choice(
            (
                *({}, {"last": 2}, {"best": 2}, {"best": 1, "monitor": "loss"}),
                *({"epochs": [2, 4]}, {"recipe": "ema", "decay": 0.7}, {"window": "swad"}),
                {"recipe": "posthoc-ema", "sigma_rel": SIGMA * 0.8},
            )
        )
        report = ckptavg.merge(folder / "run", bench.output / "mean.weights.h5", **options)
        sources = [
            (self._intact(bench, folder, source.path), source.coefficient)
            for source in report.plan.sources
        ]
        _assert_near(contents(report.output), sources)

    def _check_average(self, bench: Bench, folder: Path) -> None:
        average = folder / "swa.weights.h5"
        (found,) = ckptavg.verify(average)
        if found.average == "reproduced":
            _assert_same(contents(average), self._intact(bench, folder, average))

    def _intact(self, bench: Bench, folder: Path, path: Path) -> Contents:
        return contents(bench.corpus / self.name / path.relative_to(folder))


class Journals(Subject):
    """A merge that was interrupted and is resumed, with the model that its output describes."""

    writes_here = True

    def victims(self, name: str) -> int:
        return 2 if name.startswith(".tmp-") else name == "model.json"

    def prepare(self, folder: Path) -> None:
        seen: list[int] = []

        def stop(nbytes: int) -> None:
            seen.append(nbytes)
            if len(seen) > 3:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            self._resume(folder, "mean.weights.h5", progress=stop)
        if not list(folder.glob(".tmp-*.journal")):
            raise AssertionError("the merge has left no journal")

    def check(self, bench: Bench, folder: Path, random: Random) -> str:
        expected = mean([contents(folder / f"{name}.weights.h5") for name in NAMES])
        model = folder / "model.json"
        intact = (bench.corpus / self.name / model.name).read_bytes()
        if _files(folder).get(model.name) != intact:
            sources = [folder / f"{name}.weights.h5" for name in NAMES]
            report = ckptavg.merge(sources, bench.output / "mean.keras", model=model)
            _assert_configured(report.output, model)
        else:
            report = self._resume(folder, "mean.weights.h5")
            if left := sorted(path.name for path in folder.glob(".tmp-*")):
                raise WrongError(f"a merge that was resumed left {left}")
        _assert_same(contents(report.output), expected)
        return EQUAL

    @staticmethod
    def _resume(folder: Path, output: str, **options: object) -> ckptavg.MergeReport:
        sources = [folder / f"{name}.weights.h5" for name in NAMES]
        with (
            mock.patch.object(tensors, "BLOCK_SIZE", 64),
            mock.patch.object(work, "BLOCK_SIZE", 64),
        ):
            return ckptavg.merge(sources, folder / output, resume=True, jobs=1, **options)


class Scores(Subject):
    """The cache of a search: what it knows is what was written, as far as a line can be read."""

    writes_here = True

    def check(self, bench: Bench, folder: Path, random: Random) -> str:
        text = _files(folder).get("scores.jsonl", b"")
        cache = open_scores(folder)
        for place, metrics in SCORES.items():
            found = cache.get(one_hot(place))
            if found not in (None, metrics) and not _says(text, found):
                raise WrongError(f"the score {place} is {found}, which no line says")
        cache.add([0.5] * len(SCORES), {"loss": 0.25})
        if open_scores(folder).get([0.5] * len(SCORES)) != {"loss": 0.25}:
            raise WrongError("a score that was added is not found again")
        return EQUAL


class Arrays(Subject):
    """Data of an evaluation in an `.npz` file."""

    def check(self, bench: Bench, folder: Path, random: Random) -> str:
        path = folder / "data.npz"
        x, *y = found if isinstance(found := as_data(path), tuple) else (found,)
        with np.load(path, allow_pickle=False) as arrays:
            for key, ours in zip("xy", [x, *y], strict=False):
                if not isinstance(ours, np.ndarray) or ours.tobytes() != arrays[key].tobytes():
                    raise WrongError(f"'{key}' is {ours!r:.80}, but {arrays[key]!r:.80} to numpy")
        return EQUAL


class States(Subject):
    """A folder with TensorFlow's list of its checkpoints."""

    def victims(self, name: str) -> int:
        return name == "checkpoint"

    def check(self, bench: Bench, folder: Path, random: Random) -> str:
        for prefix in read_state(folder):
            if folder.resolve() not in prefix.resolve().parents:
                raise WrongError(f"{prefix} is outside of the folder")
        if random.random() < 0.3:
            report = ckptavg.merge(folder, bench.output / "mean.index", non_float="last")
            expected = mean([contents(source.path) for source in report.plan.sources])
            _assert_same(contents(report.output), expected)
        return EQUAL


def contents(path: Path) -> Contents:
    """The tensors of the model, or an error of ckptavg's."""
    with open_reader(path) as reader:
        return {name: _array(reader, t) for name, t in reader.structure.model_tensors.items()}


def mean(checkpoints: list[Contents]) -> Contents:
    """The plain mean, rounded once; of what has none, the last."""
    found = {}
    for name, last in checkpoints[-1].items():
        if is_float(last.dtype.name):
            values = [np.asarray(one[name], np.float64) for one in checkpoints]
            with np.errstate(all="ignore"):
                total = np.atleast_1d(sum(values) / len(values))
                last = round_once(total, last.dtype).reshape(last.shape)
        found[name] = last
    return found


def _array(reader: CheckpointReader, tensor: TensorInfo) -> np.ndarray:
    if tensor.dtype == STRING:  # strings differ in length, and stay as they are stored
        return np.frombuffer(_bytes_of(reader, tensor), np.uint8)
    return np.frombuffer(_bytes_of(reader, tensor), tensor.numpy_dtype).reshape(tensor.shape)


def _bytes_of(reader: CheckpointReader, tensor: TensorInfo) -> bytearray:
    if tensor.nbytes > 64 * 1024**2:
        raise WrongError(f"'{tensor.name}' of {tensor.nbytes:,} bytes is in a file of a few KB")
    buffer = bytearray(tensor.nbytes)
    reader.read_into(tensor, 0, memoryview(buffer))
    return buffer


def _assert_same(found: Contents, expected: Contents) -> None:
    if found.keys() != expected.keys():
        raise WrongError(f"{sorted(found.keys() ^ expected.keys())} are only in one of both")
    for name, value in expected.items():
        if (found[name].shape, found[name].tobytes()) != (value.shape, value.tobytes()):
            raise WrongError(f"'{name}' is {found[name]!r:.100}, but should be {value!r:.100}")


def _assert_near(found: Contents, sources: list[tuple[Contents, float]]) -> None:
    """Coefficients of recipes need not be binary fractions: the last bit may differ."""
    for name, value in found.items():
        expected = sum(coefficient * np.asarray(one[name], "f8") for one, coefficient in sources)
        if not np.allclose(value, expected, rtol=1e-5, atol=1e-6):
            raise WrongError(f"'{name}' is not the mean of {len(sources)} sources")


def _assert_configured(output: Path, model: Path) -> None:
    """The configuration in an archive is that of the file, as JSON means it."""
    content = json.loads(model.read_bytes())
    found = ModelConfig.read(output)
    if json.loads(found.config) != content["config"]:
        raise WrongError("the output has another configuration than the model")


def _check_side_files(run: Path) -> None:
    """All that can be read without checkpoints: each must be refused or read by itself."""
    found: list[CkptavgError] = []
    for read in (lambda: repr(ckptavg.open_run(run)), lambda: ckptavg.open_run(run).history):
        with _collected(found):
            read()
    with _collected(found):
        rates = read_rates(run, 1) or []
        if not all(map(math.isfinite, rates)):
            raise WrongError(f"the learning rates {rates} were taken")
    with _collected(found):
        ModelConfig.read(run / "model.json")
    if found:
        raise found[0]


@contextlib.contextmanager
def _collected(errors: list[CkptavgError]) -> Iterator[None]:
    try:
        yield
    except CkptavgError as error:
        errors.append(error)


def _says(text: bytes, metrics: Mapping[str, float]) -> bool:
    """Whether a line of a cache says these metrics, read leniently."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            stored = json.loads(line.decode("utf-8", "replace"))["metrics"]
            if repr({str(k): float(v) for k, v in stored.items()}) == repr(dict(metrics)):
                return True
    return False


def _run_program(*arguments: object) -> None:
    """The command line: it prints, or ends with one line of error."""
    status, _, errors = command_line(*arguments)
    if status not in (0, 1) or (status and "error: " not in errors):
        raise WrongError(f"{arguments[0]} ended with {status}: {errors[-2000:]}")


def _subjects() -> Iterator[Subject]:
    yield Checkpoints("weights.h5", ".weights.h5", "hdf5")
    for version in ("earliest", "v108", "v110", "latest"):
        for order in ("", " ordered"):
            yield Checkpoints(f"hdf5 {version}{order}", ".weights.h5", "hdf5")
    yield Checkpoints("chunked.h5", ".weights.h5", "hdf5")
    yield Checkpoints("chunked latest", ".weights.h5", "hdf5")
    yield Checkpoints("keras2.h5", ".h5", "hdf5")
    yield Checkpoints("model.h5", ".h5", "hdf5")
    yield Checkpoints("weights.json", ".weights.json", "sharded hdf5")
    yield Checkpoints("keras", ".keras", "archive")
    yield Checkpoints("safetensors", ".safetensors", "safetensors")
    yield Checkpoints("shards.safetensors", ".safetensors.index.json", "sharded safetensors")
    yield Checkpoints("tensorflow", ".index", "tensorflow")
    yield Checkpoints("tensorflow 1", ".index", "tensorflow")
    yield Checkpoints("tensorflow snappy", ".index", "tensorflow")
    yield Checkpoints("recorded weights.h5", ".weights.h5", "hdf5")
    yield Checkpoints("recorded chunked.h5", ".weights.h5", "hdf5")
    yield Checkpoints("recorded keras", ".keras", "archive")
    yield Checkpoints("recorded safetensors", ".safetensors", "safetensors")
    yield Runs("run")
    yield Journals("journal")
    yield Scores("scores")
    yield Arrays("arrays")
    yield States("state")


SUBJECTS: Mapping[str, Subject] = {subject.name: subject for subject in _subjects()}


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size < _HUGE
    }


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
