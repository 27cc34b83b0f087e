"""Real files of every format, mutated and merged: an error of ckptavg's own, or what is right."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ckptavg.errors import CkptavgError
from ckptavg.formats import ModelConfig, open_reader
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import Record, now
from ckptavg.runs.record_files import find_record, record_path
from tests.formats.hdf5 import test_keras2, test_keras3, test_keras3_shards
from tests.formats.safetensors import test_checkpoint as test_safetensors
from tests.formats.tensorflow import test_checkpoint as test_tensorflow
from tests.fuzzing.mutations import mutate
from tests.fuzzing.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

NAMES = ("one", "two")


class Compressed:
    """Tensors that HDF5 must decode."""

    suffix = ".weights.h5"

    def make(self, folder, seed, name):
        rng = np.random.default_rng(seed)
        with h5py.File(folder / f"{name}{self.suffix}", "w") as file:
            for number, options in enumerate(({"compression": "gzip", "shuffle": True}, {}, {})):
                values = rng.normal(size=(20, 9)).astype(">f4" if number == 2 else "<f4")
                chunks = (7, 4) if number < 2 else None
                path = f"layers/dense_{number}/vars/0"
                file.create_dataset(path, data=values, chunks=chunks, **options)
        return folder / f"{name}{self.suffix}", {}


FORMATS = {
    "weights.h5": test_keras3.TestWeightsH5,
    "keras": test_keras3.TestKerasArchive,
    "shards.h5": test_keras3_shards.TestShardedWeights,
    "legacy": test_keras2.TestWeightsOfTfKeras,
    "model.h5": test_keras2.TestWholeModelOfKeras3,
    "decoded": Compressed,
    "tensorflow": test_tensorflow.TestKeras3Checkpoint,
    "saver": test_tensorflow.TestSaverOfTensorFlow1,
    "safetensors": test_safetensors.TestSafetensors,
    "shards.safetensors": test_safetensors.TestShardedSafetensors,
}


@dataclass
class Base:
    """Two checkpoints of one model in a folder, and what comes of them as they are."""

    folder: Path
    sources: list[Path]
    output: str
    options: dict = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)

    @property
    def recorded(self) -> bool:
        """Whether records prove the checkpoints."""
        return all(record_path(source).exists() for source in self.sources)

    @property
    def files(self) -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in sorted(self.folder.iterdir())}


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def bases(tmp_path_factory, worker) -> Callable[[str, bool], Base]:
    """Makes the checkpoints of a format, without or with records, once."""
    made: dict[tuple[str, bool], Base] = {}

    def base(kind: str, recorded: bool) -> Base:
        if (kind, recorded) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}-{recorded}")
            made[kind, recorded] = _make(kind, recorded, folder, worker)
        return made[kind, recorded]

    return base


def _make(kind: str, recorded: bool, folder: Path, worker: Worker) -> Base:
    case = FORMATS[kind]()
    for seed, name in enumerate(NAMES):
        case.make(folder, seed, name)
    (folder / "checkpoint").unlink(missing_ok=True)
    suffix = "" if case.suffix == ".index" else case.suffix
    sources = [folder / f"{name}{suffix}" for name in NAMES]
    if recorded:
        for source in sources:
            make_record(source)
    options = {"model": str(sources[0])} if kind == "keras" else {}
    found = Base(folder, sources, f"mean{suffix}", options)
    found.expected = outcome_of(worker, found, "merge")["tensors"]
    return found


def make_record(checkpoint: Path) -> Path:
    with open_reader(checkpoint) as reader:
        record = Record(checkpoint.name, reader.size, now(), {}, model="model.json")
    return record.write(record_path(checkpoint), tensor_records(checkpoint)).path


def outcome_of(worker: Worker, base: Base, action: str) -> dict:
    """What comes of an action, which leaves its sources as they are and either all or nothing."""
    before = base.files
    with TemporaryDirectory(dir=base.folder.parent) as name:
        folder = Path(name)
        output = str(folder / base.output)
        if action == "merge":
            sources = [*map(str, base.sources)]
            answer = worker.ask("merge", sources=sources, output=output, **base.options)
        elif action == "convert":
            answer = worker.ask("convert", source=str(base.sources[0]), output=f"{output}.h5")
        else:
            answer = worker.ask("verify", source=str(base.sources[0]))
        left = sorted(file.name for file in folder.iterdir())
        assert not [name for name in left if name.startswith(".tmp-")]
        assert bool(left) == (answer["outcome"] == "ok" and action != "verify"), left
    assert base.files == before
    return answer


def check_any_bytes(worker: Worker, base: Base, random: Random) -> None:
    """Changes one file of the first checkpoint, or one that belongs to both."""
    files = [file for file in base.files if not file.name.startswith(NAMES[1])]
    victim = random.choice(files)
    action = random.choice(("merge", "merge", "merge", "convert", "verify"))
    with mutated(victim, random):
        answer = outcome_of(worker, base, action)
        is_left_out = base.recorded and says_not_finite(base.sources[0])
    event(f"{action}: {answer['outcome']}")
    proven = base.recorded or ".data-" in victim.name  # by TensorFlow's own checksums
    if proven and action == "merge" and answer["outcome"] == "ok" and not is_left_out:
        assert answer["tensors"] == base.expected


def says_not_finite(checkpoint: Path) -> bool:
    """Whether the record says that no average may take the checkpoint, as a change may make it."""
    try:
        record = find_record(checkpoint)
    except CkptavgError:
        return False
    return record is not None and bool(record.non_finite)


@contextmanager
def mutated(file: Path, random: Random) -> Iterator[None]:
    content = file.read_bytes()
    try:
        file.write_bytes(mutate(random, content, file.name))
        yield
    finally:
        file.write_bytes(content)


def any_bytes(examples: int) -> Callable:
    """Settings of a test that is given randomness."""

    def decorate(test: Callable) -> Callable:
        chosen = settings(
            max_examples=examples,
            deadline=None,
            derandomize=examples < 1000,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        return chosen(given(random=st.randoms(use_true_random=True))(test))

    return decorate


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
@any_bytes(40)
def test_any_bytes_give_the_average_or_an_error(worker, bases, kind, recorded, random):
    check_any_bytes(worker, bases(kind, recorded), random)


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
@any_bytes(1000)
def test_many_bytes_give_the_average_or_an_error(worker, bases, kind, recorded, random):
    check_any_bytes(worker, bases(kind, recorded), random)


@any_bytes(50)
def test_any_configuration_of_a_model_is_carried_or_refused(worker, bases, random):
    plain, archive = bases("weights.h5", False), bases("keras", False)
    file = plain.folder.with_name("model.json")
    file.write_text(ModelConfig.read(archive.sources[0]).to_json())
    with mutated(file, random):
        outcome_of(
            worker, replace(plain, output="mean.keras", options={"model": str(file)}), "merge"
        )


@any_bytes(50)
def test_any_list_of_tensorflows_checkpoints_names_some_or_is_refused(worker, managed, random):
    with mutated(managed.folder / "checkpoint", random):
        outcome_of(worker, managed, "merge")


@any_bytes(50)
def test_any_journal_or_partial_file_leads_to_the_same_average(worker, bases, interrupted, random):
    base, victim = bases("weights.h5", False), random.choice(sorted(interrupted.iterdir()))
    with TemporaryDirectory(dir=base.folder.parent) as folder:
        for file in interrupted.iterdir():
            content = file.read_bytes()
            changed = mutate(random, content, file.name) if file == victim else content
            (Path(folder) / file.name).write_bytes(changed)
        answer = merge_in_small_regions(worker, base, Path(folder))
        left = sorted(file.name for file in Path(folder).iterdir())
        assert answer["outcome"] == "ok", answer
        assert answer["tensors"] == base.expected
        assert left == [base.output, f"{base.output}.json"]


@pytest.fixture(scope="session")
def managed(tmp_path_factory) -> Base:
    """A folder with TensorFlow's list of its checkpoints."""
    folder = tmp_path_factory.mktemp("managed")
    managed_by_tensorflow(folder)
    return Base(folder, [folder], "mean.index")


def managed_by_tensorflow(folder: Path) -> None:
    model = test_tensorflow.keras_3_model()
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=model), str(folder), 3)
    for seed in range(3):
        test_tensorflow.fill(model, seed)
        manager.save()


@pytest.fixture(scope="session")
def interrupted(worker, bases, tmp_path_factory) -> Path:
    """What a merge leaves that was stopped half-way and is to be gone on with."""
    folder = tmp_path_factory.mktemp("interrupted")
    answer = merge_in_small_regions(worker, bases("weights.h5", False), folder, interrupt_after=8)
    assert answer["outcome"] == "interrupted"
    (journal,) = folder.glob(".tmp-*.journal")
    assert journal.read_bytes().count(b"\n") > 4
    return folder


def merge_in_small_regions(worker: Worker, base: Base, folder: Path, **options) -> dict:
    sources, output = [*map(str, base.sources)], str(folder / base.output)
    return worker.ask(
        "merge", sources=sources, output=output, block=64, jobs=1, resume=True, **options
    )
