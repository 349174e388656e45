"""`causeway demo`: all of it in one terminal."""

from typing import Annotated

import typer
from rich.console import Console

from service import demo as demonstration
from service import terminal
from service.common_options import Count, Rate


def demo(
    rate: Rate = 5.0,
    count: Count = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop after so long.")] = None,
) -> None:
    """See it work: a service of its own, a simulated Bridge and a live reader.

    Needs nothing and leaves nothing behind. Each event is a line with the time of each stage; at
    Ctrl-C comes a summary.
    """
    wishes = demonstration.Wishes(rate=rate, count=count, seconds=seconds)
    console = Console()
    is_good = terminal.run_until_stopped(lambda stop: demonstration.run(wishes, stop, console))
    raise typer.Exit(0 if is_good else 1)
