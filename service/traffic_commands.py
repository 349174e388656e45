"""`causeway simulate`, `causeway tail`: to send events as Bridge does, and to watch them arrive."""

from random import SystemRandom
from typing import Annotated

import typer
from rich.console import Console

from service import terminal, traffic
from service.client import subscribe
from service.common_options import LOCAL, Count, Rate, StreamToken, Url
from service.filter_options import AccountIds, ItemIds, Sources, Types, UserUuids
from service.settings import split_secrets
from service.simulate import Plan


def simulate(
    secret: Annotated[
        str,
        typer.Option(
            envvar="BRIDGE_WEBHOOK_SECRET",
            show_default=False,
            help="The webhook's secret; two while it is being changed: new,old.",
        ),
    ],
    url: Url = LOCAL,
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
    report = terminal.run_until_stopped(lambda stop: traffic.simulate(plan, stop, console))
    traffic.show_report(report, console)
    raise typer.Exit(0 if report.is_good else 1)


def tail(
    token: StreamToken,
    url: Url = LOCAL,
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
            on_interruption=lambda it: terminal.warn(f"{url}: {traffic.interruption_line(it)}"),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    lines = traffic.follow(events, as_json=json, write=terminal.write_line, is_acking=ack)
    terminal.run_until_stopped(lambda stop: terminal.until_stopped(stop, lines))


def _secrets(text: str) -> tuple[str, ...]:
    try:
        return split_secrets(text)
    except ValueError as error:
        raise typer.BadParameter(f"BRIDGE_WEBHOOK_SECRET: {error}") from error
