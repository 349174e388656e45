"""How every command writes and ends, and what several of them show.

Ctrl-C or SIGTERM asks a long one to stop, and it says what was done; a second Ctrl-C ends it at
once. Without a terminal there is no colour and no progress bar.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def run_until_stopped(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run `work` with an event that Ctrl-C or SIGTERM sets, and return its result."""

    async def main() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def ask_to_stop() -> None:
            stop.set()
            loop.remove_signal_handler(signal.SIGINT)

        for number in _SIGNALS:
            loop.add_signal_handler(number, ask_to_stop)
        return await work(stop)

    return asyncio.run(main())


async def until_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or `stop` is set; it is cancelled then. Its error is raised."""
    task = asyncio.create_task(work, name="work")
    waiting = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        waiting.cancel()
        await asyncio.wait({task, waiting})
    if not task.cancelled():
        task.result()


def duration(seconds: float | None) -> str:
    """Return seconds for people: `2.1 ms`, `3.2 s`, `5.0 min`; `-` for None."""
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1000:.1f} ms"


@contextmanager
def progress(name: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that moves a progress bar to (done, total); no bar without a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        bar = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def write_line(line: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def warn(line: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"causeway: {line}\n")


def printable(text: str) -> str:
    """Replace what could command a terminal: the text is somebody else's."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
