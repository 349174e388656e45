"""The result of a run: tables on the terminal, and the same as Markdown with date and machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure

PREAMBLE = """\
# Benchmarks

Written by `python -m tests.bench` (`make bench`); do not edit. What carries over to another machine
are the ratios: both sides were measured in the same run, in turns, and the median of the rounds is
shown. In brackets the smallest and the largest value.
"""
COLUMNS = ("figure", "value", "range", "target", "")


@dataclass(frozen=True, slots=True)
class Section:
    """One bench: its name, what it measures (its module's docstring), and its figures."""

    name: str
    explanation: str
    figures: Sequence[Figure]


def show(console: Console, section: Section) -> None:
    """Print a section's table."""
    table = Table(*COLUMNS, title=section.name, title_justify="left")
    for row in map(_row, section.figures):
        table.add_row(*row)
    console.print(table)


def write(
    path: Path, sections: Sequence[Section], machine: Mapping[str, str], effort_name: str
) -> None:
    """Write sections as Markdown; those in the file that were not measured now stay as they are."""
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    kept = _sections(path.read_text()) if path.exists() else {}
    for section in sections:
        lines = [section.explanation.strip(), "", f"Measured {when}, {effort_name}.", ""]
        kept[section.name] = "\n".join([*lines, *_table(COLUMNS, map(_row, section.figures))])
    parts = [PREAMBLE, "\n".join(_table(("machine", ""), machine.items())) + "\n"]
    parts += [f"## {name}\n\n{text}\n" for name, text in kept.items()]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(parts))


def _sections(text: str) -> dict[str, str]:
    """Return the sections of a file that `write` wrote, by name, in their order."""
    parts = (part.partition("\n") for part in text.split("\n## ")[1:])
    return {name: content.strip() for name, _, content in parts}


def _row(figure: Figure) -> tuple[str, ...]:
    target = ""
    if figure.target is not None:
        sign = "≥" if figure.target.is_minimum else "≤"
        target = f"{sign} {_number(figure.target.bound)}"
    verdict = {None: "", True: "met", False: "MISSED"}[figure.is_met]
    spread = f"({_number(figure.low)} to {_number(figure.high)})"
    return (figure.what, f"{_number(figure.value)} {figure.unit}", spread, target, verdict)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three digits that mean something; thousands set apart."""
    if abs(value) >= 1000:
        digits = 3 - len(str(int(abs(value))))
        return f"{round(value, digits):,.0f}"
    return f"{value:.3g}"
