"""The digests that a merge comes by: of what it writes, and of all that it reads."""

import json
from collections.abc import Mapping, Sequence

from ckptavg.formats import CheckpointWriter
from ckptavg.formats.tensors import blocks
from ckptavg.merging.journal import Journal
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.tensor_rules import AVERAGE, DROP, EQUAL, LAST
from ckptavg.merging.work import Segment, Strip, total_blocks
from ckptavg.merging.worker import GroupDigests, chosen_sources
from ckptavg.runs.digest import DIGEST_SIZE, digest
from ckptavg.runs.record import TensorRecord
from ckptavg.version import __version__


class Digests:
    """Collects the digests of groups, 16 bytes for each block of the output and of each source."""

    def __init__(self, plan: MergePlan, groups: Sequence[Sequence[Strip]]) -> None:
        self._plan = plan
        self._groups = groups
        self._chosen = {a: chosen_sources(plan, a) for a in (AVERAGE, EQUAL, LAST)}
        size = total_blocks(plan.items) * DIGEST_SIZE
        self._written = bytearray(size)
        self._read = [bytearray(size) for _ in plan.sources]

    def add(self, group: int, found: GroupDigests) -> None:
        """Takes in the digests of a finished group."""
        position = 0
        for place, segment in enumerate(_segments(self._groups[group])):
            here = slice(segment.number * DIGEST_SIZE, (segment.number + 1) * DIGEST_SIZE)
            self._written[here] = found.written[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE]
            for index in self._chosen[segment.item.action]:
                if segment.item.action == AVERAGE or index == len(self._read) - 1:
                    self._read[index][here] = found.read[position : position + DIGEST_SIZE]
                position += DIGEST_SIZE

    def source(self, index: int) -> str | None:
        """One digest of all that went into the output from a source; None if nothing did.

        It is the xxh3-128 of the digests of all blocks in the order of the plan, zeros for those
        that came from other sources alone.
        """
        return digest(self._read[index]).hex() if any(self._read[index]) else None

    def tensor_records(self) -> dict[str, TensorRecord]:
        """Shape, dtype and digests of every tensor of the output."""
        records, position = {}, 0
        for item in self._plan.items:
            if item.action == DROP:
                continue
            tensor, found = item.tensor, []
            for _ in blocks(tensor.nbytes):
                found.append(self._written[position : position + DIGEST_SIZE].hex())
                position += DIGEST_SIZE
            records[tensor.name] = TensorRecord(tensor.shape, tensor.dtype, tuple(found))
        return records


def recall(
    journal: Journal, writer: CheckpointWriter, plan: MergePlan, group: int, strips: Sequence[Strip]
) -> GroupDigests | None:
    """The digests of a group that an earlier merge finished.

    Only if the bytes that it wrote still have them, and the records of the sources prove what it
    read; else None: the group is averaged again, and finds out what is wrong.
    """
    entry = journal.entries.get(group)
    if entry is None:
        return None
    found = GroupDigests(*entry)
    segments = _segments(strips)
    count = sum(len(chosen_sources(plan, segment.item.action)) for segment in segments)
    if (len(found.written), len(found.read)) != (len(segments) * DIGEST_SIZE, count * DIGEST_SIZE):
        return None
    position = 0
    for place, segment in enumerate(segments):
        tensor, block = segment.item.tensor, segment.block
        data = writer.read(tensor.name, block.start, block.nbytes)
        if digest(data) != found.written[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE]:
            return None
        for index in chosen_sources(plan, segment.item.action):
            source = plan.sources[index]
            read = found.read[position : position + DIGEST_SIZE]
            position += DIGEST_SIZE
            if source.proof is not None and not source.proof.holds(tensor.name, block, read):
                return None
    return found


def fingerprint(plan: MergePlan) -> str:
    """What two merges have in common whose outputs are the same, block by block."""
    content: Mapping[str, object] = {
        "version": __version__,
        "items": [(i.tensor.name, i.tensor.shape, i.tensor.dtype, i.action) for i in plan.items],
        "sources": [
            (str(source.path.resolve()), source.coefficient, source.stamps)
            for source in plan.sources
        ],
    }
    return digest(json.dumps(content).encode()).hex()


def _segments(group: Sequence[Strip]) -> list[Segment]:
    return [segment for strip in group for segment in strip.segments]
