"""Markdown tables that line up in a terminal, too."""

from collections.abc import Sequence

from _rounds import Results


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (header, rule, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison(results: Results, base: str) -> str:
    """All cases with their ratios to the case `base`, whose memory nobody asks for."""
    header = (
        "how",
        "whole s",
        f"x {base}",
        "part s",
        f"part x {base}",
        "peak MiB",
        "anon MiB",
        "misrounded",
    )
    rows = []
    for case in results.cases:
        memory = [results.largest(case, name) for name in ("peak", "anonymous")]
        wrong = results.misrounded.get(case)
        rows.append(
            (
                case,
                number(results.median(case, "whole")),
                number(results.ratio(case, "whole", base)),
                number(results.median(case, "part")),
                number(results.ratio(case, "part", base)),
                *("" if case == base else f"{mib:,.0f}" for mib in memory),
                "" if wrong is None else percent(wrong),
            )
        )
    return table(header, rows)


def number(value: float | None) -> str:
    """Three digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """One misrounded element in a billion must not look like none."""
    return f"{100 * share:.2g} %"
