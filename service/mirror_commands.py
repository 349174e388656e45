"""`causeway mirror ...`: does the stream in NATS fit the log, and make it anew."""

from typing import TYPE_CHECKING, Annotated

import typer

from service import config, operate, terminal
from service.config import Settings
from service.errors import ConfigError
from service.eventlog import EventLog

if TYPE_CHECKING:
    from service.mirror_fit import Place

app = typer.Typer(help="The mirror of the log in NATS JetStream.", no_args_is_help=True)
From = Annotated[
    int | None,
    typer.Option(
        "--from",
        min=1,
        help="The first position that the stream is to have. Default: the log's first.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command()
def check() -> None:
    """Say where the stream ends, and whether it fits the log; exit with 1 if it does not."""
    settings = _settings()

    async def work(eventlog: EventLog) -> "Place | None":
        from service.mirror_fit import fit
        from service.mirror_stream import MirrorStream
        from service.nats import connected

        async with connected(settings, "causeway mirror check") as connection:
            return await fit(MirrorStream(connection, settings.nats_stream), eventlog)

    place = operate.with_eventlog(settings, work)
    if place is None:
        terminal.write_line(f"there is no stream {settings.nats_stream}: the mirror will make it")
        return
    lag = place.head - place.position
    terminal.write_line(
        f"the stream {settings.nats_stream} fits: positions {place.first} to {place.position}, "
        f"{lag} behind the log"
    )


@app.command()
def rebuild(from_: From = None, yes: Yes = False) -> None:
    """Delete the stream and make it anew, empty; the mirror that runs fills it.

    Consumers of the stream are deleted with it. Gateways read from Postgres meanwhile.
    """
    settings = _settings()
    name = settings.nats_stream
    if not yes:
        typer.confirm(f"Delete the stream {name} and all its consumers?", abort=True)

    async def work(eventlog: EventLog) -> int:
        from service.mirror_stream import MirrorStream
        from service.nats import connected

        bounds = await eventlog.bounds()
        first = bounds.first_position if from_ is None else from_
        if not bounds.first_position <= first <= bounds.head_position + 1:
            raise typer.BadParameter(
                f"the log has positions {bounds.first_position} to {bounds.head_position}"
            )
        async with connected(settings, "causeway mirror rebuild") as connection:
            await MirrorStream(connection, name).remake(settings, bounds.log_id, first)
        return first

    first = operate.with_eventlog(settings, work)
    terminal.write_line(f"the stream {name} is empty, and begins at position {first}")


def _settings() -> Settings:
    """Return the settings. Raises ConfigError if NATS cannot be reached with them."""
    settings = config.load()
    if not settings.nats_urls:
        raise ConfigError("CAUSEWAY_NATS_URL is not set")
    try:
        import nats  # noqa: F401
    except ModuleNotFoundError as missing:
        raise ConfigError("nats-py is missing: install causeway[server,nats]") from missing
    return settings
