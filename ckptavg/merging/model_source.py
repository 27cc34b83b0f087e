"""Where the configuration of an average comes from: what was named, its sources, or a run."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptavg.errors import FormatError, MismatchError
from ckptavg.formats import ModelConfig, open_reader
from ckptavg.formats.model_config import ASSETS, CONFIG, parse_config, without_training
from ckptavg.merging.planned_sources import SourcePlan, check_same_model
from ckptavg.merging.quantized import check_config_not_quantized
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.digest import digest
from ckptavg.runs.proof import check_model_file
from ckptavg.storage.files import is_file
from ckptavg.storage.open_file import read_small_file

_NAMING = ("name", "keras_history", "input_layers", "output_layers")
"""Keys under which layers are named."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The configuration of the model that the checkpoints belong to.

    Attributes:
        file: a `model.json` or a `.keras` file; None if there is none, or no single one.
        digest: of a `model.json`.
        config: its content, if the output needs it.
        note: in what the configurations of the checkpoints differ, though not in the network; empty
            if they do not.
    """

    file: Path | None = None
    digest: str | None = None
    config: ModelConfig | None = None
    note: str = ""


def find_model(
    sources: Sequence[SourcePlan],
    output: Path,
    named: Path | None,
    *,
    needed: bool,
    max_memory: int | None = None,
) -> ModelSource:
    """Finds the configuration of a model: the named one, else that on which the checkpoints agree.

    Checkpoints agree if their networks are the same; the last one's configuration is then taken,
    with the optimizer and the learning rate in it.

    Args:
        sources: the checkpoints.
        output: the output, for messages.
        named: what the caller named, if anything.
        needed: whether the output holds the configuration.
        max_memory: bytes that reading it may take.

    Raises:
        FormatError: it is needed, but there is none, or it is damaged.
        MismatchError: it is needed, but the networks of the checkpoints differ; or the model is
            quantized, or another one.
        IntegrityError: it was changed since a checkpoint was saved with it.
    """
    if named is not None:
        found = ModelSource(named, _digest_of(named))
    else:
        found = _of_archives(sources, needed, max_memory) or _of_records(
            sources, needed, max_memory
        )
    if not needed:
        return found
    if found.file is None:
        raise FormatError(
            f"cannot write {output}: a .keras file needs the configuration of the model, and the "
            "checkpoints have none. Pass a model (--model), or write a .weights.h5 file"
        )
    # Only an archive has weights that can be compared; a JSON file is taken at its word.
    if named is not None and named.suffix == ".keras":
        with open_reader(named) as reader:
            check_same_model(sources[0], reader)
    config = ModelConfig.read(found.file, max_memory)
    check_config_not_quantized(found.file, config)
    return ModelSource(found.file, found.digest, config, found.note)


def _of_archives(
    sources: Sequence[SourcePlan], needed: bool, max_memory: int | None
) -> ModelSource | None:
    """The configuration in `.keras` files; None if the checkpoints are others."""
    if not all(CONFIG in source.members for source in sources):
        return None
    last = sources[-1]
    unlike = [s for s in sources if _network_members(s) != _network_members(last)]
    try:
        for other in unlike:
            _check_assets(other, last)
        note = _compare([s.path for s in unlike], last.path, max_memory)
    except MismatchError:
        if needed:
            raise
        return ModelSource()
    return ModelSource(last.path, note=note)


def _of_records(sources: Sequence[SourcePlan], needed: bool, max_memory: int | None) -> ModelSource:
    """The configuration that the records of the checkpoints name."""
    named = [
        Checkpoint(source.path, source.record)
        for source in sources
        if source.record is not None and source.record.model is not None
    ]
    files = {file.resolve(): c for c in named if (file := c.model_file) is not None}
    if not files:
        return ModelSource()
    *others, (last, holder) = files.items()
    if needed:
        for checkpoint in files.values():
            check_model_file(checkpoint)
    try:
        note = _compare([file for file, _ in others], last, max_memory)
    # Of two networks neither can be known to be the right one.
    except MismatchError:
        if needed:
            raise
        return ModelSource()
    assert holder.record is not None, "only a record names a configuration"
    return ModelSource(last, holder.record.model_digest, note=note)


def _digest_of(path: Path) -> str | None:
    """The digest of a `model.json`; None for a `.keras` file, which has parts of its own."""
    if path.suffix != ".json" or not is_file(path):
        return None
    try:
        return digest(read_small_file(path)).hex()
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error


def _network_members(source: SourcePlan) -> dict[str, object]:
    """What zip says of the configuration and the assets; equal ones need not be read."""
    members = source.members.items()
    return {name: member for name, member in members if name == CONFIG or name.startswith(ASSETS)}


def _check_assets(one: SourcePlan, other: SourcePlan) -> None:
    a, b = ({**_network_members(source), CONFIG: None} for source in (one, other))
    different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    if different:
        raise MismatchError(
            f"'{different[0]}' differs between {one.path} and {other.path}: name the .keras file "
            "whose files are to be taken (--model, in Python model=)"
        )


def _compare(others: Sequence[Path], last: Path, max_memory: int | None) -> str:
    """In what configurations of one network differ, in words; "" if they do not.

    Raises:
        MismatchError: the networks differ.
    """
    note = ""
    if not others:
        return note
    wanted = parse_config(last, max_memory)
    for other in others:
        found = parse_config(other, max_memory)
        # Usually the same but for the optimizer, which is faster to see.
        if without_training(found) != without_training(wanted):
            different = _difference(_network(found), _network(wanted))
            if different:
                raise MismatchError(
                    f"the models of {other} and {last} differ in {different}: name the one to "
                    "take (--model, in Python model=)"
                )
        note = note or _difference(found, wanted)
    if not note:
        return ""
    # Those of two runs have one name.
    same = others[0].name == last.name
    names = [os.path.relpath(path) if same else path.name for path in (last, others[0])]
    return f"that of {names[0]}; {names[1]} differs in {note}"


def _network(config: Any) -> Any:
    """A configuration without what belongs to training, and with numbers in place of layers' names.

    Keras counts layers in the names it gives them, so that a model which was built twice in a
    process has other names; files of weights do not hold them.
    """
    numbers: dict[str, int] = {}
    for name in _layer_names(config):
        numbers.setdefault(name, len(numbers))

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: plain(v, k) for k, v in without_training(value).items()}
        if isinstance(value, list):
            return [plain(item, key) for item in value]
        is_name = key in _NAMING and isinstance(value, str)
        return numbers.get(value, value) if is_name else value

    return plain(config)


def _layer_names(config: Any) -> Iterator[str]:
    if isinstance(config, list):
        for item in config:
            yield from _layer_names(item)
    elif isinstance(config, dict):
        inner, kind = config.get("config"), str(config.get("class_name"))
        # The name of a dtype policy is its dtype.
        if isinstance(inner, dict) and isinstance(inner.get("name"), str) and "Policy" not in kind:
            yield inner["name"]
        for value in without_training(config).values():
            yield from _layer_names(value)


def _difference(one: Any, other: Any, place: str = "") -> str:
    """The first value in which two configurations differ, in words; "" if they are equal."""
    if one == other:
        return ""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in sorted(one.keys() | other.keys())]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(place, *both) for both in zip(one, other, strict=True)]
    else:
        return f"'{place}' ({_shown(one)} and {_shown(other)})"
    return next(filter(None, (_difference(a, b, key) for key, a, b in pairs)), "")


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value!r:.40}"
