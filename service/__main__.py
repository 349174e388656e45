"""The commands: `causeway ...` and `python -m service ...`.

Each command reads its options and calls the module that does the work; a known error becomes one
sentence on standard error and exit 1 (2 for options that cannot be right). A plain install is for
clients and has no commands: it says what to install.
"""

import sys

try:
    from random import SystemRandom
    from typing import Annotated

    import typer
    from rich.console import Console

    from service import (
        __version__,
        config,
        consumer_commands,
        document_commands,
        logs,
        mirror_commands,
        operate,
        replay_commands,
        retention_commands,
        terminal,
        token_commands,
    )
    from service import demo as demonstration
    from service import serve as serving
    from service.client import SubscribeError, subscribe
    from service.errors import CausewayError
    from service.filter_options import AccountIds, ItemIds, Sources, Types, UserUuids
    from service.settings import split_secrets
    from service.simulate import Plan
except ModuleNotFoundError as missing:
    package = (missing.name or "service").partition(".")[0]
    if package == "service":
        raise
    sys.exit(f"{package} is missing: install the service with: pip install 'causeway[server]'")

app = typer.Typer(
    help="Causeway: Bridge's webhooks, proven, kept in one order, and handed on.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # its tracebacks show locals: tokens and secrets among them
)

Url = Annotated[str, typer.Option(envvar="CAUSEWAY_URL", help="Where the service is.")]
Rate = Annotated[float, typer.Option(min=0.001, help="Events a second.")]
Count = Annotated[int | None, typer.Option(min=1, help="Stop after so many events.")]


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    try:
        app()
    except (CausewayError, SubscribeError) as error:
        terminal.warn(str(error))
        sys.exit(1)


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Bridge's webhooks, proven, kept in one order, and handed on."""
    if version:
        terminal.write_line(f"causeway {__version__}")
        raise typer.Exit


app.add_typer(token_commands.app, name="token")
app.command()(document_commands.openapi)
app.command()(retention_commands.prune)
app.command()(retention_commands.erase)
app.add_typer(consumer_commands.app, name="consumers")
app.add_typer(mirror_commands.app, name="mirror")
app.command()(replay_commands.replay)


@app.command()
def serve(
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Apply missing migrations first (small set-ups).")
    ] = False,
    roles: Annotated[
        str | None,
        typer.Option(
            help="Only these of ingest,stream,relay,admin,mirror; instead of CAUSEWAY_ROLES."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="So many processes share the port; instead of CAUSEWAY_WORKERS."),
    ] = None,
    tail: Annotated[
        str | None,
        typer.Option(help="Follow the log in postgres or in nats; instead of CAUSEWAY_TAIL."),
    ] = None,
) -> None:
    """Run the service. Settings come from the environment; the README lists them.

    Without DATABASE_URL an embedded Postgres is started, and stopped at the end.
    """
    given = {"CAUSEWAY_ROLES": roles, "CAUSEWAY_WORKERS": workers, "CAUSEWAY_TAIL": tail}
    settings = config.load(
        options={name: str(value) for name, value in given.items() if value is not None}
    )
    logs.configure(settings.log_level)
    raise typer.Exit(serving.serve(settings, is_migrating=migrate))


@app.command()
def migrate() -> None:
    """Bring the database's schema to this version. Run it as the owner, before the service."""
    applied = operate.migrate_database(config.load())
    terminal.write_line("\n".join(f"applied {name}" for name in applied) or "nothing to apply")


@app.command()
def audit(
    checkpoint: Annotated[
        str | None, typer.Option(help="Also prove that the log holds this: POSITION.LINK.")
    ] = None,
) -> None:
    """Prove that nothing in the log was changed, removed or put in; name the first bad position.

    And that every event which an outgoing webhook is owed is delivered, pending or exhausted.
    Prints a checkpoint to be kept elsewhere: a later audit can be held against it.
    """
    console = Console(stderr=True)
    with terminal.progress("audit", console) as on_progress:
        proof, webhooks = operate.audit_database(config.load(), checkpoint, on_progress)
    erased = f"; {proof.erased} of them are erased" if proof.erased else ""
    terminal.write_line(f"{proof.events} events are as they were appended{erased}")
    terminal.write_line(f"every event owed has its delivery, for {webhooks} outgoing webhooks")
    terminal.write_line(f"log {proof.bounds.log_id} checkpoint {proof.checkpoint}")


@app.command()
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


@app.command()
def simulate(
    secret: Annotated[
        str,
        typer.Option(
            envvar="BRIDGE_WEBHOOK_SECRET",
            show_default=False,
            help="The webhook's secret; two while it is being changed: new,old.",
        ),
    ],
    url: Url = "http://127.0.0.1:8000",
    source: Annotated[str | None, typer.Option(help="Post to this source's own path.")] = None,
    rate: Rate = 10.0,
    count: Count = None,
    duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the events that are sent again.")
    ] = 0.0,
    forged: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction with a wrong signature; 401 is expected.")
    ] = 0.0,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Sign with the old secret, then both, then the new.")
    ] = False,
    retries: Annotated[int, typer.Option(min=0, help="Tries after the first.")] = 8,
    retry_base: Annotated[
        float, typer.Option(min=0.001, help="Seconds before the first of them; then doubling.")
    ] = 1.0,
    connections: Annotated[int, typer.Option(min=1, help="Calls open at once at most.")] = 64,
    seed: Annotated[int | None, typer.Option(help="The same events in the same order.")] = None,
) -> None:
    """Send signed events as Bridge does, retries included, and report what came back.

    For test instances of your own: the events stay in their log. Exit 1 if any call was not
    answered as it should be.
    """
    plan = Plan(
        url=url,
        secrets=_secrets(secret),
        source=source,
        rate=rate,
        count=count,
        duplicates=duplicates,
        forged=forged,
        is_rotating=rotate,
        retries=retries,
        retry_base_s=retry_base,
        connections=connections,
        seed=SystemRandom().getrandbits(32) if seed is None else seed,
    )
    console = Console()
    report = terminal.run_until_stopped(lambda stop: terminal.simulate(plan, stop, console))
    terminal.show_report(report, console)
    raise typer.Exit(0 if report.is_good else 1)


@app.command()
def tail(
    token: Annotated[
        str,
        typer.Option(
            envvar="CAUSEWAY_STREAM_TOKEN",
            show_default=False,
            help="A token with the scope `stream`.",
        ),
    ],
    url: Url = "http://127.0.0.1:8000",
    after: Annotated[str | None, typer.Option(help="Begin after this id (1042.9f3ac01b).")] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the first event of the log.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(help="Begin at a time: ISO 8601, or Unix milliseconds.")
    ] = None,
    type_: Types = None,
    item_id: ItemIds = None,
    account_id: AccountIds = None,
    user_uuid: UserUuids = None,
    source: Sources = None,
    consumer: Annotated[
        str | None,
        typer.Option(help="From the place of this consumer; silent while another holds it."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="With --consumer: only this part, as 0/4.")
    ] = None,
    ack: Annotated[
        bool, typer.Option("--ack", help="With --consumer: acknowledge what was written.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="One CloudEvents JSON object a line.")
    ] = False,
) -> None:
    """Watch the events arrive, one a line. Begins now unless told otherwise; Ctrl-C ends it.

    A lost connection is opened again where it broke, and a line on standard error says so. With
    --consumer it is a holder like any other: applications that hold the consumer come first, and
    those that come later stand by behind it. Without --ack the place stays where it is.
    """
    own = (after, from_start or None, since, type_, item_id, account_id, user_uuid, source)
    if consumer is not None and any(option is not None for option in own):
        raise typer.BadParameter(
            "a consumer has its own beginning and filter: see `causeway consumers`"
        )
    if ack and consumer is None:
        raise typer.BadParameter("--ack goes with --consumer")
    try:
        events = subscribe(
            url,
            token,
            after=after,
            from_start=from_start,
            since=since,
            types=type_ or (),
            item_ids=item_id or (),
            account_ids=account_id or (),
            user_uuids=user_uuid or (),
            sources=source or (),
            consumer=consumer,
            shard=shard,
            on_interruption=lambda it: terminal.warn(f"{url}: {terminal.interruption_line(it)}"),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    lines = terminal.follow(events, as_json=json, write=terminal.write_line, is_acking=ack)
    terminal.run_until_stopped(lambda stop: terminal.until_stopped(stop, lines))


def _secrets(text: str) -> tuple[str, ...]:
    try:
        return split_secrets(text)
    except ValueError as error:
        raise typer.BadParameter(f"BRIDGE_WEBHOOK_SECRET: {error}") from error


if __name__ == "__main__":
    main()
