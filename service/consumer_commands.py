"""`causeway consumers list|show|put|reset|delete`: named consumers, for whoever has a token."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service import terminal
from service.client import (
    Call,
    call_sync,
    delete_consumer,
    get_consumer,
    list_consumers,
    put_consumer,
    reset_consumer,
)
from service.common_options import LOCAL, StreamToken, Url
from service.consumer_calls import DEFAULT_ACK_MODE, DEFAULT_LEASE_S
from service.filter_options import AccountIds, ItemIds, Sources, Types, UserUuids

app = typer.Typer(
    help="Make, see, move and delete named consumers: places that the service keeps.",
    no_args_is_help=True,
)


def _checked(name: str) -> str:
    try:
        get_consumer(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return name


Name = Annotated[
    str, typer.Argument(callback=_checked, help="The consumer, for example `billing`.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, with every field.")]
Start = Annotated[
    str, typer.Option(help="`now`, `start`, a position, an id (1042.9f3ac01b) or a time.")
]


@app.command("list")
def list_(token: StreamToken, url: Url = LOCAL, as_json: AsJson = False) -> None:
    """List all consumers: place, lag, holders."""
    consumers = _call(url, token, list_consumers())["consumers"]
    if as_json:
        terminal.write_line(json.dumps(consumers))
        return
    table = Table("name", "place", "lag", "behind", "acks", "shards held")
    for each in consumers:
        held = sum(shard["held_by"] is not None for shard in each["shards"])
        table.add_row(
            terminal.printable(each["name"]),
            each["id"],
            str(each["lag_events"]),
            terminal.duration(each["lag_seconds"]),
            each["ack_mode"],
            f"{held} of {len(each['shards'])}",
        )
    Console().print(table)


@app.command()
def show(name: Name, token: StreamToken, url: Url = LOCAL, as_json: AsJson = False) -> None:
    """Show one consumer, and who holds each of its shards since when."""
    consumer = _call(url, token, get_consumer(name))
    if as_json:
        terminal.write_line(json.dumps(consumer))
        return
    terminal.write_line(describe(consumer))
    table = Table("shard", "place", "lag", "held by", "since", "lease until")
    for shard in consumer["shards"]:
        moments = (str(shard[field] or "-") for field in ("held_since", "lease_until"))
        holder = terminal.printable(shard["held_by"] or "nobody")
        table.add_row(shard["shard"], shard["id"], str(shard["lag_events"]), holder, *moments)
    Console().print(table)


@app.command()
def put(
    name: Name,
    token: StreamToken,
    url: Url = LOCAL,
    start: Start = "now",
    type_: Types = None,
    item_id: ItemIds = None,
    account_id: AccountIds = None,
    user_uuid: UserUuids = None,
    source: Sources = None,
    ack_mode: Annotated[
        str, typer.Option(help="`explicit`, or `auto`: a reconnect acknowledges, too.")
    ] = DEFAULT_ACK_MODE,
    lease: Annotated[
        int, typer.Option(min=1, help="Seconds after which a dead holder is replaced.")
    ] = DEFAULT_LEASE_S,
) -> None:
    """Make a consumer, or change it: what is not given becomes the default again.

    `--start` is where a new one begins; one that exists keeps its place.
    """
    wish = put_consumer(
        name,
        start=_start(start),
        types=type_ or (),
        item_ids=item_id or (),
        account_ids=account_id or (),
        user_uuids=user_uuid or (),
        sources=source or (),
        ack_mode=ack_mode,
        lease_s=lease,
    )
    terminal.write_line(describe(_call(url, token, wish)))


@app.command()
def reset(
    name: Name,
    token: StreamToken,
    start: Annotated[
        str, typer.Option(help="Where to: `now`, `start`, a position, an id or a time.")
    ],
    url: Url = LOCAL,
) -> None:
    """Move a consumer's place, back or forth; who holds it loses it and begins there.

    Also the way on when the log no longer has the events after the place (410).
    """
    known = _call(url, token, get_consumer(name))
    terminal.write_line(describe(_call(url, token, reset_consumer(known, _start(start)))))


@app.command()
def delete(name: Name, token: StreamToken, url: Url = LOCAL) -> None:
    """Forget a consumer and its place; who holds it is cut off."""
    _call(url, token, delete_consumer(name))
    terminal.write_line(f"deleted {name}")


def describe(consumer: dict[str, Any]) -> str:
    """Return a consumer as one line."""
    wanted = json.dumps(consumer["filter"], ensure_ascii=True) if consumer["filter"] else "all"
    return (
        f"{consumer['name']} after {consumer['id']}, {consumer['lag_events']} events and "
        f"{terminal.duration(consumer['lag_seconds'])} behind; acks {consumer['ack_mode']}, "
        f"lease {consumer['lease_s']} s, events: {wanted}"
    )


def _call(url: str, token: str, what: Call) -> Any:
    try:
        return call_sync(url, token, what)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _start(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else text
