"""`causeway token create|list|revoke`: the tokens in the database, for whoever may reach it."""

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service import config, terminal
from service.auth import StoredToken
from service.filter import Filter, parse_topics
from service.filter_options import Sources, Types, UserUuids
from service.operate import with_tokens

app = typer.Typer(help="Make, list and revoke the tokens of applications.", no_args_is_help=True)

_DURATION = re.compile(r"(\d{1,6})([hd])")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will use it, for example `billing`.")],
    scope: Annotated[str, typer.Option(help="`stream` (read events) or `admin`.")] = "stream",
    type_: Types = None,
    source: Sources = None,
    user_uuid: UserUuids = None,
    expires: Annotated[str | None, typer.Option(help="After a while: 12h, 90d.")] = None,
) -> None:
    """Make a token and print it. It is shown this once; only its hash is kept."""
    limits = _limits(type_ or [], source or [], user_uuid or [])
    expires_at = None if expires is None else datetime.now(UTC) + _duration(expires)
    token = with_tokens(
        config.load(), lambda tokens: tokens.create(name, scope, limits, expires_at)
    )
    if sys.stdout.isatty():
        terminal.warn("Keep it now: it is not shown again.")
    terminal.write_line(token)


@app.command("list")
def list_() -> None:
    """List all tokens, the newest first; the tokens themselves are not kept."""
    tokens = with_tokens(config.load(), lambda tokens: tokens.all())
    table = Table("name", "scope", "limits", "created", "expires", "last used", "state")
    now = datetime.now(UTC)
    for token in tokens:
        moments = (_moment(m) for m in (token.created_at, token.expires_at, token.last_used_at))
        table.add_row(
            token.name, token.scope, _describe(token.limits), *moments, _state(token, now)
        )
    Console().print(table)


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="The name it was made with.")]) -> None:
    """Revoke a token: new requests are refused at once, its open streams end within seconds."""
    if not with_tokens(config.load(), lambda tokens: tokens.revoke(name)):
        terminal.warn(f"no valid token is named {name!r}")
        raise typer.Exit(1)
    terminal.write_line(f"revoked {name}")


def _limits(types: list[str], sources: list[str], users: list[str]) -> Filter:
    try:
        topics = parse_topics(types)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    lowered = frozenset(user.lower() for user in users)
    if bad := sorted(user for user in lowered if not _UUID.fullmatch(user)):
        raise typer.BadParameter(f"--user-uuid {bad[0]}: a UUID was expected")
    return Filter(topics=topics, sources=frozenset(sources) or None, user_uuids=lowered or None)


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"--expires {text}: hours or days were expected, as 12h or 90d")
    return timedelta(hours=int(match[1]) * (24 if match[2] == "d" else 1))


def _describe(limits: Filter) -> str:
    fields = (limits.topics, limits.sources, limits.user_uuids)
    return " ".join(sorted(value for values in fields if values for value in values)) or "none"


def _moment(moment: datetime | None) -> str:
    return "never" if moment is None else moment.strftime("%Y-%m-%d %H:%M")


def _state(token: StoredToken, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "valid"
