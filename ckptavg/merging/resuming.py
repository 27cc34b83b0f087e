"""Decides what a merge with `resume` trusts of the work of an interrupted one.

Four things must hold before a unit of work is skipped:

1. Same plan: the journal names the `fingerprint` of this very plan (`Journal._read`).
2. Whole lines: only lines of the journal with their own digest count, up to the first without
   (`Journal._read`).
3. Same layout: the partial file is laid out as this merge would lay it out
   (`CheckpointWriter._begin` in formats/writer.py); otherwise `run_plan` empties the journal.
4. Bytes and records: the bytes written still have the digests in the journal, and the digests of
   what was read are those in the records of the sources (`recall`).

See docs/decisions/0023-a-merge-can-be-resumed.md.
"""

import json

from ckptavg.formats import CheckpointWriter
from ckptavg.merging.digests import UnitDigests, by_segment
from ckptavg.merging.journal import Journal
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.work import WorkUnit
from ckptavg.runs.digest import digest
from ckptavg.version import __version__


def fingerprint(plan: MergePlan) -> str:
    """What two merges have in common if their outputs are the same, block by block."""
    content: dict[str, object] = {
        # Another version may divide the work or round in another way.
        "version": __version__,
        "items": [
            (i.tensor.name, i.tensor.shape, i.tensor.dtype, i.action, i.converted)
            for i in plan.items
        ],
        "sources": [
            (str(source.path.resolve()), source.coefficient, source.stamps)
            for source in plan.sources
        ],
    }
    return digest(json.dumps(content).encode()).hex()


def recall(
    journal: Journal, writer: CheckpointWriter, plan: MergePlan, unit: WorkUnit
) -> UnitDigests | None:
    """The digests of a unit that an earlier merge finished, if its work can be trusted.

    Otherwise None: the unit is averaged again, and that finds out what is wrong.
    """
    found = journal.entries.get(unit.number)
    if found is None:
        return None
    try:
        for segment, written, read in by_segment(plan, unit, found):
            tensor, block = segment.item.tensor, segment.block
            start, nbytes = map(segment.item.in_output, (block.start, block.nbytes))
            if digest(writer.read(tensor.name, start, nbytes)) != written:
                return None
            for index, value in read:
                proof = plan.sources[index].proof
                if proof is not None and not proof.holds(tensor.name, block, value):
                    return None
    except ValueError:
        return None
    return found
