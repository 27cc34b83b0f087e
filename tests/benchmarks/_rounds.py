"""Cases take turns for some rounds; their medians, and ratios of what ran in the same round."""

import os
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _processes import Usage, measure

Prepare = Callable[[Sequence[Path]], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A command to be measured.

    Attributes:
        name: how tables call it.
        command: what runs.
        inputs: files that it reads.
        output: file or folder that it writes, in a folder that is emptied after each run; None if
            it writes nothing.
        checker: command that prints the misrounded share of `output`; None to check nothing.
        slow: whether it runs in the first round only.
    """

    name: str
    command: Sequence[object]
    inputs: Sequence[Path]
    output: Path | None = None
    checker: Sequence[object] | None = None
    slow: bool = False


class Results:
    """What cases cost in each round."""

    def __init__(self) -> None:
        self._usages: dict[str, dict[int, Usage]] = defaultdict(dict)
        self.misrounded: dict[str, float] = {}

    def add(self, case: str, number: int, usage: Usage) -> None:
        self._usages[case][number] = usage

    @property
    def cases(self) -> list[str]:
        return list(self._usages)

    def median(self, case: str, attribute: str) -> float | None:
        """The median of an attribute of `Usage`; None where the case has no such figure."""
        return _median(getattr(usage, attribute) for usage in self._usages[case].values())

    def largest(self, case: str, attribute: str) -> float:
        return max(getattr(usage, attribute) for usage in self._usages[case].values())

    def ratio(
        self, case: str, attribute: str, to_case: str, to_attribute: str = "whole"
    ) -> float | None:
        """The median of the ratios in the rounds that both cases ran in; None if there are none."""
        above, below = self._usages.get(case, {}), self._usages.get(to_case, {})
        pairs = [
            (getattr(above[number], attribute), getattr(below[number], to_attribute))
            for number in above.keys() & below.keys()
        ]
        return _median(None if a is None or b is None else a / b for a, b in pairs)


def take_turns(
    section: str,
    cases: Sequence[Case],
    runs: int,
    prepare: Prepare,
    *,
    warm_up: bool = True,
) -> Results:
    """Runs every case once in each round, in an order that is turned from round to round.

    What a case leaves to be written to the disk is written before the next one begins, and none is
    always the neighbour of the same others.

    Args:
        section: how progress is reported.
        cases: what runs.
        runs: number of rounds.
        prepare: called with a case's inputs before it runs.
        warm_up: whether a round that is not counted comes first; slow cases sit it out.
    """
    results = Results()
    for number in range(0 if warm_up else 1, runs + 1):
        turn = max(0, number - 1) % len(cases)
        for case in (*cases[turn:], *cases[:turn]):
            if case.slow and number != 1:
                continue
            print(f"{section}, round {number} of {runs}: {case.name}", file=sys.stderr)
            prepare(case.inputs)
            os.sync()
            usage = _run(case, results)
            if number:
                results.add(case.name, number, usage)
    return results


def _run(case: Case, results: Results) -> Usage:
    """One run, which is checked if it is the case's first."""
    if case.output is None:
        return measure(case.command)
    folder = case.output.parent
    folder.mkdir()
    usage = measure(case.command)
    if case.checker and case.name not in results.misrounded:
        results.misrounded[case.name] = measure(case.checker).printed["misrounded"]
    shutil.rmtree(folder)
    return usage


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
