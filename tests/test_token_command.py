"""`token create|list|revoke`: what an operator types, and what the service then lets in."""

import re
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from service.db import Connection
from tests.bridge import USER
from tests.commands import Done, command
from tests.running import Database, Running

Token = Callable[..., Awaitable[Done]]


@pytest.fixture
def token(database: Database) -> Token:
    """Run `token ...` on the test's database."""

    async def run(*arguments: str) -> Done:
        return await command("token", *arguments, DATABASE_URL=database.service_dsn)

    return run


async def get(running: Running, token: str, path: str = "/events") -> int:
    """Return the status that `token` gets."""
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers) as client:
        return (await client.get(running.url + path)).status_code


async def test_a_created_token_is_printed_once_works_and_can_be_revoked(
    service: Running, token: Token
) -> None:
    made = await token("create", "billing")
    assert (made.code, made.err) == (0, "")
    assert re.fullmatch(r"cw_[\w-]{43}\n", made.out)  # alone, so that a script can take it
    text = made.out.strip()
    assert await get(service, text) == 200

    listed = await token("list")
    assert listed.code == 0
    assert re.search(r"billing\W+stream\W+none\W.*valid", listed.out)
    assert text not in listed.out + listed.err

    revoked = await token("revoke", "billing")
    assert (revoked.code, revoked.out) == (0, "revoked billing\n")
    assert await get(service, text) == 401
    assert re.search(r"billing.*revoked", (await token("list")).out)

    again = await token("revoke", "billing")
    assert (again.code, again.out) == (1, "")
    assert "no valid token is named 'billing'" in again.err


async def test_limits_scope_and_expiry_are_kept(token: Token, owner: Connection) -> None:
    made = await token(
        *("create", "narrow", "--scope", "admin", "--expires", "36h", "--source", "retail"),
        *("--type", "item.*", "--type", "ACCOUNT_UPDATED", "--user-uuid", USER.upper()),
    )
    assert (made.code, made.err) == (0, "")
    row = await owner.fetchrow(
        "SELECT *, user_uuids::text[] AS users, expires_at - now() AS life FROM causeway.token"
    )
    assert row is not None
    assert (row["scope"], row["topics"]) == ("admin", ["item.*", "item.account.updated"])
    assert (row["sources"], row["users"]) == (["retail"], [USER])
    assert 35.9 * 3600 < row["life"].total_seconds() <= 36 * 3600
    listed = (await token("list")).out
    assert re.search(r"narrow\W+admin\W+\S+ item\.\* item\.account\.updated retail", listed)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("create", "x", "--scope", "root"), 1, "a token's scope is one of stream, admin"),
        (("create", ""), 1, "1 to 128 characters"),
        (("create", "x", "--type", "a b"), 2, "expected a type such as item.refreshed"),
        (("create", "x", "--user-uuid", "me"), 2, "a UUID was expected"),
        (("create", "x", "--expires", "soon"), 2, "hours or days were expected"),
        (("create",), 2, "Missing argument"),
    ],
)
async def test_what_cannot_be_a_token_is_refused_in_a_sentence(
    token: Token, owner: Connection, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = await token(*arguments)
    assert (done.code, done.out) == (code, "")
    assert message in re.sub(r"\W*\n\W*", " ", done.err)
    assert "Traceback" not in done.err
    assert await owner.fetchval("SELECT count(*) FROM causeway.token") == 0


async def test_a_name_is_unique_while_it_is_valid(token: Token) -> None:
    assert (await token("create", "app")).code == 0
    second = await token("create", "app")
    assert (second.code, second.out) == (1, "")
    assert "revoke it first" in second.err


async def test_a_database_that_is_away_is_one_sentence() -> None:
    dsn = "postgresql://nobody:hidden-password@127.0.0.1:1/none"
    done = await command("token", "list", DATABASE_URL=dsn)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("causeway: DATABASE_URL: no database answers: ")
    assert "hidden-password" not in done.err
    assert "Traceback" not in done.err
