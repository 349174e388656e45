"""What `tail` and `simulate` show in a terminal: events as lines, progress, the report."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.ack_behind import AckBehind
from service.client import Event, Interruption, LeaseLost
from service.simulate import Call, Fate, Plan, Report, Simulation
from service.terminal import duration, printable, warn

_LONG_RUN_S = 2.0
_SUBJECTS = ("item", "item_id"), ("account", "account_id"), ("user", "user_uuid")


async def follow(
    events: AsyncGenerator[Event, None],
    *,
    as_json: bool,
    write: Callable[[str], None],
    is_acking: bool = False,
) -> None:
    """Write each event as one line: for people, or as CloudEvents JSON."""
    async with AckBehind(_warn_of_lost_lease) as acks, aclosing(events):
        async for event in events:
            write(json_line(event) if as_json else event_line(event, time.time()))
            if is_acking:
                acks.note(event)


def _warn_of_lost_lease(event: Event, error: LeaseLost) -> None:
    warn(f"{event.id} was not acknowledged: {error}")


def event_line(event: Event, now: float) -> str:
    """Return an event as one line; `now` in Unix seconds gives the time since it was received."""
    received = event.received_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    delay = duration(now - event.received_at.timestamp())
    kind = printable(event.type)
    return f"{received} {event.position:>8} {kind:<28} {delay:>9}  {subject(event)}".rstrip()


def json_line(event: Event) -> str:
    """Return the CloudEvents JSON on one line: a line end in it is only white space."""
    return event.cloudevent.replace("\n", " ")


def subject(event: Event) -> str:
    """Return whom the event is about; empty if the body does not say."""
    try:
        content = event.json()["content"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    return printable(" ".join(f"{n} {content[key]}" for n, key in _SUBJECTS if key in content))


def interruption_line(interruption: Interruption) -> str:
    """Say that a connection ended, and how it goes on."""
    place = f"after {interruption.last_id}" if interruption.last_id else "where it began"
    return f"{interruption.reason}: goes on {place} in {duration(interruption.wait_s)}"


async def simulate(plan: Plan, stop: asyncio.Event, console: Console) -> Report:
    """Run the plan with a progress bar, if it is a long one and there is a terminal."""
    is_long = plan.count is None or plan.count / plan.rate > _LONG_RUN_S
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not (is_long and console.is_terminal),
    ) as progress:
        bar = progress.add_task("sending", total=plan.count)

        def advance(call: Call, _: Fate) -> None:
            retried = f", {simulation.retried} tries repeated" if simulation.retried else ""
            progress.update(bar, advance=not call.is_known, description=f"sending{retried}")

        simulation = Simulation(plan, on_fate=advance)
        return await simulation.run(stop)


def show_report(report: Report, console: Console) -> None:
    """Print what a simulation did."""
    rate = report.sent / report.elapsed_s if report.elapsed_s else 0.0
    table = Table(
        title=f"{report.sent} calls in {report.elapsed_s:.1f} s ({rate:.0f}/s)", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("accepted: 200, a new position", report.accepted),
        ("sent again: 200, no second position", report.duplicates),
        ("forged: refused with 401", report.refused),
        ("unexpected: a forged or known event taken as new", report.unexpected),
        ("given up: no good answer to any try", report.given_up),
        ("unfinished: stopped before the next try", report.unfinished),
        ("tries repeated", report.retried),
        ("answers", " ".join(f"{status}: {n}" for status, n in report.answers)),
        ("time to a good answer p50", duration(report.p50_s)),
        ("p95", duration(report.p95_s)),
        ("p99", duration(report.p99_s)),
        ("longest", duration(report.max_s)),
    ):
        table.add_row(name, str(value))
    console.print(table)
