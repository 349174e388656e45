"""Outgoing webhooks in the database: made, changed, sealed, and never lost sight of."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from service.db import create_pool
from service.errors import BadRequest, TooManyWebhooks, UnknownWebhook, WebhooksOff
from service.filter import EVERYTHING, Filter
from service.outgoing import Signer
from service.seal import Sealer
from service.webhook import Webhooks
from service.webhook_value import Change, Webhook
from tests.logkeeping import Owner, replace_log
from tests.relaying import KEY, Desk, append
from tests.running import Database
from tests.stored import prune

NEW_KEY = "another-key-0123456789-0123456789"
TOKEN = "a header's value, which is a secret"
DAY = timedelta(hours=24)


@pytest.fixture
async def pool(database: Database) -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
    async with create_pool(database.service_dsn, max_size=8) as pool:
        yield pool


@pytest.fixture
async def desk(pool: "asyncpg.Pool[asyncpg.Record]") -> Desk:
    """The webhooks of a log with ten events."""
    desk = Desk(pool)
    await append(desk.eventlog, 10)
    return desk


def sealed_with(desk: Desk, *keys: str) -> Webhooks:
    """Return the same webhooks as a process with other keys has them."""
    sealer = Sealer(keys) if keys else None
    return Webhooks(desk.webhooks._database, sealer, max_per_application=10)


async def dump(owner: Owner) -> str:
    """Return all that the table holds, as a backup of it would."""
    rows = await owner.fetch("SELECT webhook::text AS row FROM causeway.webhook")
    plain = "\n".join(row["row"] for row in rows)
    hexes = plain.replace("\\\\x", "\\x").split('"')
    return plain + "".join(_text(part) for part in hexes if part.startswith("\\x"))


def _text(part: str) -> str:
    return bytes.fromhex(part[2:]).decode("latin-1")


async def changed(desk: Desk, webhook: Webhook, **values: Any) -> Webhook:
    change = Change(fields=frozenset(values), **values)
    return await desk.webhooks.change(webhook.webhook_id, change)


# Make, read, list.


async def test_a_new_webhook_begins_at_its_place_and_owes_what_follows(desk: Desk) -> None:
    made = await desk.add("https://example.com/a", types=["item.*"], sources=["shop"], after=4)
    assert (made.cursor_position, made.accounted_from, made.backfill_until) == (4, 4, 10)
    assert made.cursor_link == await desk.eventlog.link_at(4)
    assert made.filter == Filter(topics=frozenset({"item.*"}), sources=frozenset({"shop"}))
    assert (made.version, made.state, made.head_position) == (1, "enabled", 10)
    assert (made.application, made.created_by, made.is_ordered) == ("default", "tests", False)
    assert made == await desk.webhooks.read(made.webhook_id)


async def test_at_the_head_nothing_is_history(desk: Desk) -> None:
    made = await desk.add()
    assert (made.cursor_position, made.backfill_until) == (10, 10)


async def test_an_empty_log_takes_a_webhook_too(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    made = await Desk(pool).add()
    assert (made.cursor_position, made.backfill_until, made.head_position) == (0, 0, 0)


async def test_each_secret_is_its_own_and_has_256_bits(desk: Desk) -> None:
    secrets = {(await desk.add()).secret for _ in range(3)}
    assert len(secrets) == 3
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(secret) == len("whsec_") + 44


async def test_all_are_listed_by_number_and_the_disabled_are_not_called(desk: Desk) -> None:
    first, second, third = [await desk.add() for _ in range(3)]
    await desk.webhooks.disable(second.webhook_id, "admin")
    await desk.webhooks.delete(third.webhook_id)
    listed = [webhook.webhook_id for webhook in await desk.webhooks.all()]
    assert listed == [first.webhook_id, second.webhook_id]
    assert await desk.webhooks.enabled() == [first]


async def test_an_eleventh_webhook_is_refused_however_many_ask_at_once(desk: Desk) -> None:
    for _ in range(7):
        await desk.add()
    asked = await asyncio.gather(*(desk.add() for _ in range(12)), return_exceptions=True)
    made = [one for one in asked if isinstance(one, Webhook)]
    refused = [one for one in asked if isinstance(one, TooManyWebhooks)]
    assert (len(made), len(refused)) == (3, 9)
    assert "CAUSEWAY_RELAY_MAX_WEBHOOKS" in refused[0].message
    assert len(await desk.webhooks.all()) == 10


async def test_another_application_and_a_deleted_one_make_room(desk: Desk) -> None:
    made = [await desk.add() for _ in range(10)]
    await desk.add(application="shop")
    with pytest.raises(TooManyWebhooks):
        await desk.add()
    await desk.webhooks.disable(made[0].webhook_id, "admin")
    with pytest.raises(TooManyWebhooks):
        await desk.add()
    await desk.webhooks.delete(made[1].webhook_id)
    await desk.add()


# What the table holds.


async def test_a_dump_of_the_table_shows_no_secret_and_no_header(desk: Desk, owner: Owner) -> None:
    first = await desk.add(headers={"X-Api-Key": TOKEN})
    second = await desk.webhooks.rotate(first.webhook_id)
    third = await desk.webhooks.rotate(first.webhook_id)
    dumped = await dump(owner)
    assert "https://example.com/" in dumped
    for secret in (first.secret, second.secret, third.secret):
        assert secret not in dumped
        assert secret.removeprefix("whsec_")[:12] not in dumped
    assert TOKEN not in dumped
    assert "X-Api-Key" not in dumped


async def test_a_secret_of_another_row_does_not_open(desk: Desk, owner: Owner) -> None:
    first, second = await desk.add(), await desk.add()
    await owner.execute(
        "UPDATE causeway.webhook SET sealed_secret = other.sealed_secret "
        "FROM causeway.webhook AS other WHERE webhook.webhook_id = $1 AND other.webhook_id = $2",
        *(first.webhook_id, second.webhook_id),
    )
    assert await desk.webhooks.enabled() == [second]


# Change, disable, enable, delete.


async def test_a_change_changes_what_it_names_and_raises_the_version(desk: Desk) -> None:
    made = await desk.add(types=["item.*"], sources=["shop"], headers={"X-Api-Key": TOKEN})
    named = await changed(desk, made, name="Billing", url="https://example.com/b")
    assert (named.name, named.url, named.version) == ("Billing", "https://example.com/b", 2)
    assert (named.filter, named.headers, named.secret) == (made.filter, made.headers, made.secret)
    cleared = await changed(desk, made, name=None, topics=None, headers={})
    assert (cleared.name, cleared.filter.topics, cleared.headers) == (None, None, {})
    assert cleared.filter.sources == frozenset({"shop"})
    assert cleared.version == 3


async def test_another_filter_is_accounted_for_from_the_cursor_on(desk: Desk, owner: Owner) -> None:
    made = await desk.add(types=["item.*"], after=2)
    await owner.execute("UPDATE causeway.webhook SET cursor_position = 7")
    same = await changed(desk, made, topics=frozenset({"item.*"}), sources=None, name="x")
    assert same.accounted_from == 2
    other = await changed(desk, made, topics=None)
    assert (other.accounted_from, other.cursor_position) == (7, 7)
    await owner.execute("UPDATE causeway.webhook SET cursor_position = 9")
    other = await changed(desk, made, sources=frozenset({"shop"}))
    assert other.accounted_from == 9


async def test_a_disabled_webhook_keeps_its_first_reason(desk: Desk) -> None:
    made = await desk.add()
    gone = await desk.webhooks.disable(made.webhook_id, "gone")
    assert (gone.state, gone.disabled_reason, gone.version) == ("disabled", "gone", 2)
    again = await desk.webhooks.disable(made.webhook_id, "admin")
    assert (again.disabled_reason, again.disabled_at) == ("gone", gone.disabled_at)


async def test_an_enabled_webhook_begins_its_health_anew_where_it_stands(
    desk: Desk, owner: Owner
) -> None:
    made = await desk.add(after=3)
    await owner.execute(
        "UPDATE causeway.webhook SET failures = 9, failing_since = now() - interval '1 d', "
        "open_until = now() + interval '1 min', enabled_at = now() - interval '1 d'"
    )
    failing = await desk.webhooks.read(made.webhook_id)
    assert (failing.state, failing.failures) == ("failing", 9)
    await desk.webhooks.disable(made.webhook_id, "failing")
    enabled = await desk.webhooks.enable(made.webhook_id)
    assert (enabled.state, enabled.disabled_at, enabled.disabled_reason) == ("enabled", None, None)
    assert (enabled.failures, enabled.failing_since, enabled.open_until) == (0, None, None)
    assert (enabled.cursor_position, enabled.accounted_from) == (3, 3)
    assert enabled.enabled_at > failing.enabled_at + timedelta(hours=23)
    assert enabled.version == 3


async def test_what_waits_for_a_retry_is_due_when_its_webhook_is_enabled(desk: Desk) -> None:
    made = await desk.add(after=8)
    claimed = await desk.claim(made)
    await desk.end(*claimed, state="pending", due_in_s=3600.0)
    assert await desk.claim(made) == []
    await desk.webhooks.disable(made.webhook_id, "admin")
    enabled = await desk.webhooks.enable(made.webhook_id)
    assert [one.position for one in await desk.claim(enabled)] == [9, 10]


async def place(desk: Desk, position: int) -> tuple[int, bytes]:
    return position, await desk.eventlog.check(position, None)


async def test_a_start_moves_a_webhook_forward_and_never_back(desk: Desk) -> None:
    made = await desk.add(after=3)
    moved = await desk.webhooks.enable(made.webhook_id, await place(desk, 6))
    assert (moved.cursor_position, moved.accounted_from, moved.backfill_until) == (6, 6, 10)
    assert moved.cursor_link == await desk.eventlog.link_at(6)
    with pytest.raises(BadRequest, match="stands at position 6"):
        await desk.webhooks.enable(made.webhook_id, await place(desk, 5))
    same = await desk.webhooks.enable(made.webhook_id, await place(desk, 6))
    assert same.cursor_position == 6


async def test_after_another_history_a_start_is_needed_and_any_is_good(
    desk: Desk, owner: Owner
) -> None:
    made = await desk.add(after=5)
    first, *rest = await desk.claim(made, room=5)
    await desk.end(*rest)
    await desk.end(first, state="pending", due_in_s=60.0)
    await replace_log(owner, 4)
    await append(desk.eventlog, 8)
    assert await desk.claim(made) == []
    diverged = await desk.webhooks.read(made.webhook_id)
    assert (diverged.state, diverged.disabled_reason) == ("disabled", "log_diverged")
    with pytest.raises(BadRequest, match="log_diverged"):
        await desk.webhooks.enable(made.webhook_id)
    enabled = await desk.webhooks.enable(made.webhook_id, await place(desk, 7))
    assert (enabled.cursor_position, enabled.accounted_from, enabled.backfill_until) == (7, 7, 12)
    # Positions 8, 9 and 10 were delivered in the other history: these are other events.
    claimed = await desk.claim(enabled)
    assert [one.position for one in claimed] == [8, 9, 10, 11, 12]
    await desk.end(*claimed)
    rows = await owner.fetch("SELECT position FROM causeway.attempt ORDER BY position")
    assert [row["position"] for row in rows] == [7, 8, 9, 10, 11, 12]


async def test_behind_the_retained_log_a_start_is_needed(desk: Desk, owner: Owner) -> None:
    made = await desk.add(after=2)
    await prune(owner, 5)
    await desk.claim(made)
    pruned = await desk.webhooks.read(made.webhook_id)
    assert pruned.disabled_reason == "position_pruned"
    with pytest.raises(BadRequest, match="position_pruned"):
        await desk.webhooks.enable(made.webhook_id)
    enabled = await desk.webhooks.enable(made.webhook_id, await place(desk, 5))
    assert [one.position for one in await desk.claim(enabled)] == [6, 7, 8, 9, 10]


async def test_a_deleted_webhook_is_unknown_and_its_secrets_are_gone(
    desk: Desk, owner: Owner
) -> None:
    made = await desk.add(headers={"X-Api-Key": TOKEN})
    rotated = await desk.webhooks.rotate(made.webhook_id)
    before = await owner.fetchrow("SELECT * FROM causeway.webhook")
    await desk.webhooks.delete(made.webhook_id)
    after = await owner.fetchrow("SELECT * FROM causeway.webhook")
    assert before is not None
    assert after is not None
    sealer = Sealer([KEY])
    assert (
        sealer.open(before["sealed_secret"], f"webhook:{made.webhook_id}:secret") == rotated.secret
    )
    assert sealer.open(after["sealed_secret"], f"webhook:{made.webhook_id}:secret") == ""
    assert sealer.open(after["sealed_headers"], f"webhook:{made.webhook_id}:headers") == "{}"
    assert (after["sealed_previous_secret"], after["previous_secret_until"]) == (None, None)
    assert after["version"] > before["version"]
    webhooks, id_ = desk.webhooks, made.webhook_id
    for call in (
        webhooks.read(id_),
        webhooks.change(id_, Change(frozenset())),
        webhooks.disable(id_, "admin"),
        webhooks.enable(id_),
        webhooks.delete(id_),
        webhooks.rotate(id_),
    ):
        with pytest.raises(UnknownWebhook):
            await call


# Secrets.


async def test_a_rotation_keeps_the_old_secret_for_24_hours_and_never_two_old_ones(
    desk: Desk, owner: Owner
) -> None:
    first = await desk.add()
    before = datetime.now(UTC)
    second = await desk.webhooks.rotate(first.webhook_id)
    now = datetime.now(UTC)
    until = second.previous_secret_until
    assert until is not None
    assert before <= until - DAY <= now
    assert second.secret != first.secret
    assert second.secrets(now) == (second.secret, first.secret)
    assert second.version == 2
    third = await desk.webhooks.rotate(first.webhook_id)
    assert third.secrets(now) == (third.secret, second.secret)
    await owner.execute("UPDATE causeway.webhook SET previous_secret_until = now()")
    later = await desk.webhooks.read(first.webhook_id)
    assert (later.all_secrets(), later.previous_secret_until) == ((third.secret,), None)


async def test_a_new_key_seals_anew_what_the_old_one_sealed(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "causeway.webhook")
    made = [await desk.add(headers={"X-Api-Key": TOKEN}) for _ in range(2)]
    made[1] = await desk.webhooks.rotate(made[1].webhook_id)
    both = sealed_with(desk, NEW_KEY, KEY)
    assert await both.reseal() == 2
    assert await both.reseal() == 0
    [record] = caplog.records
    assert (record.message, vars(record)["webhooks"]) == ("secrets sealed with the newest key", 2)
    assert await sealed_with(desk, NEW_KEY).enabled() == made
    assert await sealed_with(desk, KEY, NEW_KEY).enabled() == made
    assert await desk.webhooks.enabled() == []


async def test_many_processes_may_seal_anew_at_once(desk: Desk) -> None:
    made = [await desk.add() for _ in range(5)]
    both = sealed_with(desk, NEW_KEY, KEY)
    counts = await asyncio.gather(*(both.reseal() for _ in range(4)))
    assert sum(counts) == 5
    assert await sealed_with(desk, NEW_KEY).enabled() == made


async def test_one_that_cannot_be_opened_stops_no_other_and_is_reported_once_a_version(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    lost = await desk.add(headers={"X-Api-Key": TOKEN})
    other = sealed_with(desk, NEW_KEY)
    kept = await other.create(
        application="default",
        name=None,
        url="https://example.com/",
        filter_=EVERYTHING,
        headers={},
        is_ordered=False,
        position=0,
        link=await desk.eventlog.check(0, None),
        created_by="tests",
    )
    for _ in range(3):
        assert await other.enabled() == [kept]
    [record] = caplog.records
    assert (record.levelname, record.message) == ("ERROR", "webhook not called")
    assert vars(record)["webhook"] == lost.webhook_id
    assert "CAUSEWAY_SECRET_KEY lacks the key" in vars(record)["reason"]
    await other.disable(lost.webhook_id, "admin")
    await other.enable(lost.webhook_id)
    await other.enabled()
    assert len(caplog.records) == 2
    assert await other.reseal() == 0
    assert (await desk.webhooks.read(lost.webhook_id)).secret == lost.secret  # nothing was lost


async def test_a_webhook_whose_key_is_lost_is_listed_and_can_be_given_new_secrets(
    desk: Desk,
) -> None:
    lost = await desk.add(headers={"X-Api-Key": TOKEN})
    other = sealed_with(desk, NEW_KEY)
    [listed] = await other.all()
    assert (listed.state, listed.secret, listed.headers) == ("unreadable", "", {})
    await other.change(lost.webhook_id, Change(frozenset({"headers"}), headers={"X-Api-Key": "n"}))
    rotated = await other.rotate(lost.webhook_id)
    assert (rotated.state, rotated.headers) == ("enabled", {"X-Api-Key": "n"})
    assert len(rotated.all_secrets()) == 1
    assert await other.enabled() == [rotated]
    Signer(rotated)


async def test_without_a_key_webhooks_are_off_and_say_what_to_set(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    made = await desk.add()
    off = sealed_with(desk)
    for call in (
        off.all(),
        off.read(made.webhook_id),
        off.rotate(made.webhook_id),
        off.delete(made.webhook_id),
        off.disable(made.webhook_id, "admin"),
        off.enable(made.webhook_id),
        off.change(made.webhook_id, Change(frozenset())),
        off.reseal(),
    ):
        with pytest.raises(WebhooksOff, match="CAUSEWAY_SECRET_KEY"):
            await call
    assert await off.enabled() == []
    assert await off.enabled() == []
    assert [vars(record)["webhook"] for record in caplog.records] == [made.webhook_id]


async def test_no_log_line_holds_a_secret(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = await desk.add(headers={"X-Api-Key": TOKEN})
    rotated = await desk.webhooks.rotate(made.webhook_id)
    await sealed_with(desk, NEW_KEY).enabled()
    await sealed_with(desk, NEW_KEY, KEY).reseal()
    lines = "\n".join(str(vars(record)) for record in caplog.records)
    assert "webhook not called" in lines
    for secret in (made.secret, rotated.secret, TOKEN, KEY, NEW_KEY):
        assert secret not in lines
