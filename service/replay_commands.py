"""`causeway replay`: send a webhook's events once more, for whoever has an admin's token."""

import asyncio
import json
from typing import Annotated, Any

import typer
from rich.console import Console

from service import terminal
from service.answers import Unreachable
from service.client import call, call_sync
from service.common_options import LOCAL, Url
from service.consumer_calls import Call
from service.filter_options import AccountIds, ItemIds, Sources, Types, UserUuids
from service.wanted import filter_body, filters

LOOK_S = 0.5

Bound = str | None


def replay(
    webhook_id: Annotated[int, typer.Argument(min=1, help="The webhook's number.")],
    token: Annotated[
        str,
        typer.Option(
            envvar="CAUSEWAY_ADMIN_TOKEN",
            show_default=False,
            help="A token with the scope `admin`.",
        ),
    ],
    url: Url = LOCAL,
    state: Annotated[
        str,
        typer.Option(help="`exhausted`: what was given up. `all`: whatever matches, needs --from."),
    ] = "exhausted",
    type_: Types = None,
    item_id: ItemIds = None,
    account_id: AccountIds = None,
    user_uuid: UserUuids = None,
    source: Sources = None,
    from_: Annotated[
        Bound, typer.Option("--from", help="The first: a position, an id, a time, or `start`.")
    ] = None,
    until: Annotated[
        Bound, typer.Option(help="The last: a position or an id; or before this time.")
    ] = None,
    since: Annotated[
        Bound, typer.Option(help="In place of --from: received at or after this ISO 8601 time.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Events a second.")] = 50.0,
    position: Annotated[
        int | None, typer.Option(min=1, help="Only the event at this position, at once.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be sent.")
    ] = False,
    follow: Annotated[
        bool, typer.Option(help="Show how far it is until all is queued; Ctrl-C leaves it going.")
    ] = True,
    cancel: Annotated[
        int | None, typer.Option(min=1, help="Stop the replay of this number instead.")
    ] = None,
) -> None:
    """Send events to a webhook once more: those that were given up, or all in a range.

    The service does it, at the rate, and goes on with it after a restart. Use --dry-run first.
    """
    wanted = filters(type_ or (), item_id or (), account_id or (), user_uuid or (), source or ())
    bounds = (from_, until, since)
    if (position or cancel) and (wanted or dry_run or any(bounds) or (position and cancel)):
        raise typer.BadParameter("--position and --cancel stand alone")
    if from_ and since:
        raise typer.BadParameter("give only one of --from and --since")
    try:
        if cancel is not None:
            _cancel(url, token, webhook_id, cancel)
        elif position is not None:
            _replay_one(url, token, webhook_id, position)
        else:
            wish = {"state": state, "from": _bound(from_ or since), "until": _bound(until)}
            body = wish | filter_body(wanted) | {"rate": rate, "dry_run": dry_run}
            _replay(url, token, webhook_id, body, follow=follow)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _cancel(url: str, token: str, webhook_id: int, replay_id: int) -> None:
    stopped = call_sync(url, token, Call("DELETE", _path(webhook_id, replay_id)))
    terminal.write_line(_describe(stopped))


def _replay_one(url: str, token: str, webhook_id: int, position: int) -> None:
    path = f"/api/webhooks/{webhook_id}/deliveries/{position}/replay"
    outcome = call_sync(url, token, Call("POST", path))["outcome"]
    text = "is queued" if outcome == "queued" else "is on its way already"
    terminal.write_line(f"position {position} {text}")


def _replay(url: str, token: str, webhook_id: int, body: dict[str, Any], *, follow: bool) -> None:
    made = call_sync(url, token, Call("POST", _path(webhook_id), body))
    if body["dry_run"]:
        wanted = json.dumps(made["filter"]) if made["filter"] else "any"
        terminal.write_line(
            f"would send {made['events']} events of positions {made['from']} to {made['until']} "
            f"(state {made['state']}, filter {wanted}) in {terminal.duration(made['eta_seconds'])}"
        )
        return
    if follow:
        console = Console(stderr=True)
        made = terminal.run_until_stopped(lambda stop: _follow(url, token, made, stop, console))
    terminal.write_line(_describe(made))
    if made["status"] == "running":
        terminal.write_line(_how_to_stop(made))
    if made["status"] == "cancelled":
        raise typer.Exit(1)


async def _follow(
    url: str, token: str, known: dict[str, Any], stop: asyncio.Event, console: Console
) -> dict[str, Any]:
    """Show a replay's progress until it is over or `stop` is set; return it as it was last."""
    # Not before Ctrl-C is caught: whoever reads it may press it.
    terminal.write_line(f"begun: {known['events']} events. {_how_to_stop(known)}")
    look = Call("GET", _path(known["webhook_id"], known["id"]))
    is_away = False
    with terminal.progress("queued", console) as show:
        while known["status"] == "running" and not stop.is_set():
            show(known["queued"], known["events"])
            try:
                async with asyncio.timeout(LOOK_S):
                    await stop.wait()
            except TimeoutError:
                pass  # time to look
            try:
                known = await call(url, token, look)
                is_away = False
            except Unreachable as error:
                if not is_away:
                    terminal.warn(f"{error}; the replay goes on when the service does")
                is_away = True
        show(known["queued"], known["events"])
    return known


def _describe(replay_: dict[str, Any]) -> str:
    states = {"running": "goes on", "finished": "is done", "cancelled": "is cancelled"}
    return (
        f"replay {replay_['id']} of webhook {replay_['webhook_id']} {states[replay_['status']]}: "
        f"{replay_['queued']} of {replay_['events']} events queued, looked through to position "
        f"{replay_['position']} of {replay_['until']}"
    )


def _how_to_stop(replay_: dict[str, Any]) -> str:
    return f"Stop it with: causeway replay {replay_['webhook_id']} --cancel {replay_['id']}"


def _path(webhook_id: int, replay_id: int | None = None) -> str:
    path = f"/api/webhooks/{webhook_id}/replays"
    return path if replay_id is None else f"{path}/{replay_id}"


def _bound(text: Bound) -> str | int | None:
    is_position = text is not None and text.isascii() and text.isdigit() and len(text) <= 18
    return int(text) if text is not None and is_position else text
