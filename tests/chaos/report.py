"""A run told as Markdown: what was broken comes first, then each fault and how all recovered.

Pure: values in, text out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.chaos.fault import Fault
from tests.chaos.recovery import Recovery
from tests.chaos.run import Outcome
from tests.chaos.schedule import Step

SHOWN = 25  # violations; what breaks one promise often breaks it for many events
TIMES = ("no 200", "200", "streams", "consumers")
COLUMNS = ("fault", "times", "what was done", "promise", "seen", *TIMES)
LEGEND = """\
Seconds, median and worst. `no 200`: the longest time in which nothing was accepted at all, from the
beginning of the fault to the end of the recovery. The others count from the heal: until a new event
had its 200, until every subscriber had that event, until every shard of every consumer went on.
Times are of a fault that was held alone; the steps below have the pairs as well."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a report needs to know beside the outcome."""

    seed: int
    command: str
    machine: Mapping[str, str]
    faults: Mapping[str, Fault]
    skipped: Mapping[str, str]
    steps: Sequence[Step]


def report(told: Told, outcome: Outcome) -> str:
    """Return the whole report."""
    violations = outcome.violations
    verdict = f"**{len(violations)} violations.**" if violations else "**Every promise was kept.**"
    lines = [f"# Chaos, seed {told.seed}", "", verdict, ""]
    if violations:
        lines += ["Run it again:", "", f"    {told.command}", ""]
        rows = list(_broken(outcome))
        lines += [*_table(("violation", "what", "after"), rows[:SHOWN]), ""]
        lines += [f"And {len(rows) - SHOWN} more.", ""] if len(rows) > SHOWN else []
    lines += ["## Faults", "", *_table(COLUMNS, _rows(told, outcome)), "", LEGEND, ""]
    lines += [*_left_out(told, outcome)]
    lines += ["## The run", "", *_table(("", ""), {**told.machine, **outcome.figures}.items()), ""]
    lines += ["## Step by step", ""]
    lines += _table(("faults", "held", *TIMES), _steps(outcome))
    return "\n".join(lines) + "\n"


def _broken(outcome: Outcome) -> Iterable[Sequence[str]]:
    for done in outcome.done:
        for it in done.violations:
            yield (it.kind, it.text, _names(done.step))
    for it in outcome.final:
        yield (it.kind, it.text, "the end")


def _rows(told: Told, outcome: Outcome) -> Iterable[Sequence[str]]:
    for name, fault in told.faults.items():
        mine = [done for done in outcome.done if name in _all_names(done.step)]
        if not mine:
            continue
        broken = sum(len(done.violations) for done in mine)
        seen = f"BROKEN ({broken})" if broken else "kept"
        alone = [done for done in mine if len(done.step.planned) == 1]
        found = [done.recovery for done in alone or mine]
        times = (_spread(found, take) for take in _TIMES)
        yield (f"`{name}`", str(len(mine)), fault.what, fault.promise, seen, *times)


_TIMES: tuple[Callable[[Recovery], float | None], ...] = (
    lambda it: it.gap_s,
    lambda it: it.taken_s,
    lambda it: it.streams_s,
    lambda it: it.consumers_s,
)


def _spread(found: Sequence[Recovery], take: Callable[[Recovery], float | None]) -> str:
    """Say the median and the worst; a dash if it never came back."""
    values = [take(it) for it in found]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "never"
    middle, worst = f"{median(known):.1f}", f"{max(known):.1f}"
    return middle if middle == worst else f"{middle}, {worst}"


def _left_out(told: Told, outcome: Outcome) -> list[str]:
    """Name what was not done, and why: nothing is skipped in silence."""
    done = {name for it in outcome.done for name in _all_names(it.step)}
    lines = [f"- `{name}` was skipped: {reason}" for name, reason in told.skipped.items()]
    missing = [name for name in told.faults if name not in done]
    if missing:
        lines.append(f"- there was no time for {', '.join(f'`{name}`' for name in missing)}")
    return [*lines, ""] if lines else []


def _steps(outcome: Outcome) -> Iterable[Sequence[str]]:
    for done in outcome.done:
        seconds = ("-" if (it := take(done.recovery)) is None else f"{it:.2f}" for take in _TIMES)
        yield (_names(done.step), f"{done.held_s:.1f}", *seconds)


def _all_names(step: Step) -> set[str]:
    return {planned.name for planned in step.planned}


def _names(step: Step) -> str:
    return " + ".join(f"`{planned.name}`" for planned in step.planned)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
