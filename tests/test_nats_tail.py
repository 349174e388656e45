"""A gateway that follows the mirror, on a real nats-server: it loses nothing, whatever happens.

A second service on the same log follows Postgres: what both send must be the same to the byte.
"""

import asyncio
import hashlib
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from nats.errors import Error as NatsError

from service import mirror as mirror_module
from service import nats_feed, nats_log, nats_tail
from service.db import Connection, create_pool
from service.erase import Erasures
from service.errors import Misfit
from service.event import Event, chain_link
from service.eventlog import Bounds
from service.mirrored import message_of
from service.nats import Stream, connected
from service.nats_feed import Feed
from service.nats_log import MirroredLog
from service.nats_tail import NatsTail
from service.roles import ALL, spell
from tests.bridge import USER, new_event
from tests.certificates import Authority
from tests.logkeeping import append, append_many, positions, replace_log, sample
from tests.nats_feeder import (
    Feeder,
    Spoil,
    be_patient,
    delete_stream,
    feeding_stream,
    other_link,
)
from tests.nats_server import NatsServer, nats_cluster, nats_server
from tests.reader import Block, follow, reading
from tests.running import WITHIN_S, Database, Running, eventually, make_settings, running_service

OTHER = "11111111-2222-4333-8444-555555555555"
CHECK_S = 0.3
SOURCES = ("nats", "postgres")


@dataclass
class Gateway:
    """A service that follows the stream, what fills the stream, and one that follows Postgres."""

    running: Running
    feeder: Feeder
    plain: Running

    def source(self) -> str:
        """Return what the tail follows, as the metric says it."""
        [source] = [s for s in SOURCES if sample(self.running, "tail_source", source=s)]
        return source

    async def reach(self, source: str, within_s: float = WITHIN_S) -> None:
        """Return when the tail follows `source`."""
        try:
            await eventually(lambda: self.source() == source, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(self.running.service.tail.says()) from error  # type: ignore[attr-defined]

    async def hears(self) -> None:
        """Return when the tail waits for the stream as the limits of now say."""
        tail = self.running.service.tail
        assert isinstance(tail, NatsTail)
        feed = tail._feed
        assert feed is not None
        before = feed.heard_at
        await eventually(lambda: feed.heard_at > before)  # it has taken that, or does so at once

    def fallbacks(self, reason: str) -> float:
        return sample(self.running, "tail_fallbacks_total", reason=reason)

    async def note(self) -> str:
        """Return what `/readyz` says of the tail; the service must be ready."""
        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"{self.running.url}/readyz")
        assert answer.status_code == 200, answer.text
        said: str = answer.json()["notes"]["tail"]
        return said

    async def same(self, head: int, query: str = "from=start") -> list[Block]:
        """Read up to `head` from both services; return the events, which are the same."""
        found: list[list[Block]] = [[], []]
        await asyncio.gather(
            follow(self.running.url, found[0], until=head, query=query),
            follow(self.plain.url, found[1], until=head, query=query),
        )
        assert found[0] == found[1]
        assert positions(found[0]) == list(range(1, head + 1))
        return found[0]


Open = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def opening(
    database: Database, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Open]:
    """Open a gateway: `gateway = await opening(window_events=10)`; it follows NATS at once."""
    shorten(monkeypatch)
    async with AsyncExitStack() as stack:

        async def open_one(**overrides: object) -> Gateway:
            return await stack.enter_async_context(gateway(database, nats.url, **overrides))

        yield open_one


@pytest.fixture
async def opened(
    database: Database, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway beside the mirror itself."""
    shorten(monkeypatch, request_s=5.0)
    async with mirrored(database, nats.url) as opened:
        yield opened


def shorten(monkeypatch: pytest.MonkeyPatch, *, request_s: float = 20.0) -> None:
    monkeypatch.setattr(nats_tail, "RETURN_S", (0.1, 0.3, 0.5))
    be_patient(monkeypatch, request_s=request_s)
    monkeypatch.setattr(mirror_module, "RETRY_S", 0.2)


@asynccontextmanager
async def gateway(database: Database, url: str, **overrides: object) -> AsyncIterator[Gateway]:
    """A gateway beside a feeder, which can be told to fail."""
    settings = make_settings(tail="nats", nats_url=url, nats_check_s=CHECK_S, **overrides)
    async with (
        feeding_stream(database, settings) as feeder,
        running_service(make_settings(**overrides), database) as plain,
    ):
        await eventually(lambda: feeder.has_begun)  # else the tail falls before it begins
        async with running_service(settings, database) as running:
            yield Gateway(running, feeder, plain)


@asynccontextmanager
async def mirrored(database: Database, url: str, replicas: int = 1) -> AsyncIterator[Gateway]:
    """A gateway beside the mirror itself, which fails as NATS does."""
    mirror = make_settings(roles=f"{spell(ALL)},mirror", nats_url=url, nats_replicas=replicas)
    settings = make_settings(tail="nats", nats_url=url, nats_check_s=CHECK_S, roles="stream")
    async with (
        running_service(mirror, database) as plain,
        running_service(settings, database) as running,
    ):
        yield Gateway(running, Feeder(database, settings), plain)


@asynccontextmanager
async def load(opened: Gateway) -> AsyncIterator[Callable[[], int]]:
    """Append and read for the block; then all that was read must be all that was appended."""
    is_over = asyncio.Event()
    found: list[Block] = []

    async def appending() -> None:
        while not is_over.is_set():
            await opened.plain.service.eventlog.append(
                [new_event() for _ in range(5)], timeout_s=30
            )
            await asyncio.sleep(0.01)

    reader = asyncio.create_task(follow(opened.running.url, found))
    writer = asyncio.create_task(appending())
    try:
        yield lambda: found[-1].position if found else 0
        is_over.set()
        await writer
        head = (await opened.plain.service.eventlog.bounds()).head_position
        await eventually(lambda: found and found[-1].position == head)
    finally:
        writer.cancel()
        reader.cancel()
        await asyncio.gather(writer, reader, return_exceptions=True)
    assert found == await opened.same(head)


async def grows(position: Callable[[], int], by: int = 50, within_s: float = WITHIN_S) -> None:
    """Return when a reader has got `by` more events."""
    wanted = position() + by
    await eventually(lambda: position() >= wanted, within_s=within_s)


@pytest.fixture
async def erasures(database: Database) -> AsyncIterator[Erasures]:
    async with create_pool(database.service_dsn, max_size=1) as pool:
        yield Erasures(pool)


async def delete_message(opened: Gateway, position: int) -> None:
    """Take a message out of the stream, as the mirror does for an erased event."""
    settings = opened.running.settings
    async with connected(settings, "test") as connection:
        await connection.jetstream.delete_msg(settings.nats_stream, position)


# Away and back


async def test_a_server_that_is_killed_and_comes_back_costs_no_event(
    opened: Gateway, nats: NatsServer
) -> None:
    assert await opened.note() == "the stream CAUSEWAY is followed"
    async with load(opened) as position:
        for _ in range(2):
            await grows(position)
            nats.kill()
            await opened.reach("postgres")
            assert (await opened.note()).startswith("Postgres is followed: ")
            await grows(position)
            nats.start()
            nats.wait()
            await opened.reach("nats")
        await grows(position)
    assert opened.fallbacks("away") == 2


async def test_a_server_that_says_nothing_is_given_up_within_a_bound(
    opened: Gateway, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_feed, "SILENT_S", 1.5)
    async with load(opened) as position:
        await grows(position)
        nats.freeze()
        await opened.reach("postgres")
        await grows(position)
        nats.thaw()
        await opened.reach("nats")
        await grows(position)
    assert opened.fallbacks("away") >= 1


async def test_postgres_is_followed_while_the_connection_that_hangs_is_being_closed(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS the other side is to say goodbye as well, and does not."""
    shorten(monkeypatch)
    monkeypatch.setattr("service.nats.CLOSE_TIMEOUT_S", 60.0)
    authority = Authority(tmp_path)
    certificate, ca = authority.issue("127.0.0.1"), tmp_path / "ca.pem"
    ca.write_text(authority.pem())
    more = f'tls {{ cert_file: "{certificate.chain}", key_file: "{certificate.key}" }}'
    with nats_server(tmp_path / "nats", more=more) as server:
        url = server.url.replace("nats:", "tls:")
        async with gateway(database, url, nats_ca=ca) as opened:
            await append(opened.running)
            assert opened.source() == "nats"
            monkeypatch.setattr(nats_feed, "SILENT_S", 1.5)
            await opened.hears()
            server.freeze()
            await append(opened.running)
            assert opened.source() == "postgres"
            server.thaw()
            await opened.reach("nats")


async def test_a_mirror_that_lags_is_noticed_without_anybody_asking(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_tail, "LAG_S", 0.5)
    opened = await opening()
    async with load(opened) as position:
        await grows(position)
        opened.feeder.pause()
        await opened.reach("postgres")
        await grows(position)
        monkeypatch.setattr(nats_tail, "LAG_S", WITHIN_S)  # however slowly it gets the rest
        opened.feeder.resume()
        await opened.reach("nats")
        await grows(position)
    assert opened.fallbacks("lagging") >= 1


async def test_who_falls_again_and_again_comes_back_more_and_more_slowly(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_tail, "RETURN_S", (0.1, 3600.0))
    opened = await opening()
    opened.feeder.spoil = other_link(1)
    await append(opened.running)
    await opened.reach("postgres")
    opened.feeder.spoil = lambda event: event
    await append(opened.running)
    await asyncio.sleep(3 * CHECK_S)  # several of the first pauses
    assert opened.source() == "postgres"


async def test_without_nats_a_gateway_starts_and_serves_from_postgres(
    database: Database,
) -> None:
    settings = make_settings(tail="nats", nats_url="nats://127.0.0.1:1", roles="stream,ingest")
    async with (
        running_service(make_settings(), database) as plain,
        running_service(settings, database, is_waiting_for_nats=False) as running,
    ):
        opened = Gateway(running, None, plain)  # type: ignore[arg-type]
        await append_many(running, 20)
        await opened.same(20)
        assert opened.source() == "postgres"
        await eventually(lambda: "NATS cannot answer" in running.service.tail.says())  # type: ignore[attr-defined]
        assert "NATS cannot answer" in await opened.note()


async def test_a_server_that_lost_its_jetstream_costs_no_event(
    opening: Open, nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does whose disk is full: it answers, but nobody in it does for JetStream."""
    opened = await opening()
    config = nats.config.read_text()
    nats.stop()
    nats.config.write_text(re.sub("(?m)^jetstream .*$", "", config))
    nats.start()
    nats.wait()
    await opened.reach("postgres")
    await eventually(lambda: "JetStream cannot answer now" in opened.running.service.tail.says())  # type: ignore[attr-defined]
    await append(opened.running)
    nats.stop()
    nats.config.write_text(config)
    nats.start()
    await opened.reach("nats")
    await opened.same(1)
    assert "loop failed" not in caplog.messages


async def test_a_file_to_log_in_with_that_is_lost_is_an_alarm_and_costs_no_event(
    database: Database,
    nats: NatsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As while it is being replaced: Postgres is followed without a break, then NATS again."""
    shorten(monkeypatch)
    ca = tmp_path / "ca.pem"
    ca.write_text(Authority(tmp_path).pem())
    settings = make_settings(tail="nats", nats_url=nats.url, roles="stream,ingest")
    async with (
        feeding_stream(database, settings),
        running_service(settings.model_copy(update={"nats_ca": ca}), database) as running,
    ):
        opened = Gateway(running, None, running)  # type: ignore[arg-type]
        lost = ca.rename(tmp_path / "lost.pem")
        nats.kill()
        await opened.reach("postgres")
        await eventually(lambda: any("CAUSEWAY_NATS_CA" in alarm for alarm in alarms(caplog)))
        await append(running)
        lost.rename(ca)
        nats.start()
        await opened.reach("nats")
    assert "loop failed" not in caplog.messages


# A stream that is wrong


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the tail called a person for."""
    records = [record for record in caplog.records if record.name == "causeway.nats_tail"]
    return [vars(record)["reason"] for record in records if record.levelname == "ERROR"]


async def test_a_deleted_stream_is_an_alarm_and_is_followed_again_when_it_is_made_anew(
    opening: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_feed, "SILENT_S", 1.5)
    opened = await opening()
    async with load(opened) as position:
        await grows(position)
        opened.feeder.pause()
        await delete_stream(opened.running.settings)
        await opened.reach("postgres")
        await eventually(lambda: "there is no stream CAUSEWAY" in alarms(caplog))
        await grows(position)
        opened.feeder.forget()
        opened.feeder.resume()
        await opened.reach("nats")
        await grows(position)


async def test_a_purged_stream_is_followed_on_and_what_is_gone_is_read_from_postgres(
    opening: Open,
) -> None:
    opened = await opening(window_events=10)
    await append_many(opened.running, 300)
    settings = opened.running.settings
    async with connected(settings, "test") as connection:
        await connection.jetstream.purge_stream(settings.nats_stream)
    await append_many(opened.running, 300)
    await opened.same(600)
    assert opened.source() == "nats"


async def test_a_stream_that_lost_its_end_costs_no_event(
    opened: Gateway, nats: NatsServer, tmp_path: Path
) -> None:
    """The mirror publishes again what the gateway had before."""
    async with load(opened) as position:
        await grows(position)
        nats.stop()
        shutil.copytree(nats.folder / "store", tmp_path / "older")
        await opened.reach("postgres")
        nats.start()
        nats.wait()
        await opened.reach("nats")
        await grows(position)
        nats.kill()
        shutil.rmtree(nats.folder / "store")
        shutil.copytree(tmp_path / "older", nats.folder / "store")
        await opened.reach("postgres")
        nats.start()
        nats.wait()
        await opened.reach("nats")
        await grows(position)
    assert opened.fallbacks("misfit") == 0


def other_body(at: int) -> Spoil:
    """Spoil the event at `at`: another body under the same link."""
    return lambda event: replace(event, body=b"{}") if event.position == at else event


@pytest.mark.parametrize("spoil", [other_link, other_body])
async def test_what_is_not_the_logs_is_an_alarm_and_never_served(
    opening: Open,
    spoil: Callable[[int], Spoil],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_fits, may_return = NatsTail._check_fits, asyncio.Event()

    async def held(tail: NatsTail, stream: Stream) -> None:
        """Whoever looks at the stream before Postgres has brought more meets the same again."""
        await may_return.wait()
        await check_fits(tail, stream)

    opened = await opening()
    monkeypatch.setattr(NatsTail, "_check_fits", held)
    await append_many(opened.running, 3)
    opened.feeder.spoil = spoil(5)
    for _ in range(4):
        await append(opened.running)
    may_return.set()
    await opened.reach("nats")
    await opened.same(7)
    assert opened.fallbacks("misfit") == 1
    assert alarms(caplog) == ["position 5 of the stream is not chained to the one before"]
    assert not opened.running.service.tail.is_damaged, "the log is what it was"


async def test_another_history_of_the_log_is_the_same_alarm_as_without_nats(
    opening: Open, owner: Connection
) -> None:
    opened = await opening()
    await append_many(opened.running, 5)
    async with reading(opened.running.url, "control=1") as reader:
        await reader.control("caught_up")
        await replace_log(owner, 3)
        assert await reader.control("closing") == {"reason": "diverged"}
    assert opened.running.service.tail.is_damaged


async def test_a_stream_that_lagged_for_a_moment_puts_off_no_look_at_the_log(
    opening: Open, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_tail, "LAG_S", 3600.0)
    opened = await opening(roles="stream,ingest")  # nobody listens: it looks
    service = opened.running.service
    opened.feeder.pause()
    await opened.plain.service.eventlog.append([new_event() for _ in range(5)], timeout_s=WITHIN_S)
    await eventually(lambda: service.tail.lag() == 5)
    opened.feeder.resume()
    await eventually(lambda: service.window.position == 5)
    await replace_log(owner, 3)
    await eventually(lambda: service.tail.is_damaged)


async def test_what_comes_again_is_compared_with_what_was_handed_out(opening: Open) -> None:
    opened = await opening()
    await append_many(opened.running, 3)
    tail = opened.running.service.tail
    assert isinstance(tail, NatsTail)
    [_, second, third] = await opened.running.service.eventlog.read_after(0)
    await tail._take([second, third])
    with pytest.raises(Misfit, match="another event at 3 than the log"):
        await tail._take([second, replace(third, link=bytes(32))])
    assert opened.running.service.window.position == 3


async def test_an_event_that_is_forged_to_fit_ends_the_streams_as_another_history(
    opening: Open,
) -> None:
    """Whoever may publish can chain an event: the log's end, looked up now and then, tells."""
    opened = await opening()
    await append_many(opened.running, 5)
    settings = opened.running.settings
    async with reading(opened.running.url, "control=1") as reader:
        await reader.control("caught_up")
        async with connected(settings, "test") as connection:
            last = await Stream(connection, settings.nats_stream).event(5)
            assert last is not None
            body = b'{"type":"forged"}'
            digest = hashlib.sha256(body).digest()
            link = chain_link(last.link, digest, 6, last.received_at, last.source)
            message = message_of(replace(last, position=6, link=link, body=body, digest=digest))
            await connection.client.publish(message.subject, message.body, headers=message.headers)
            assert await reader.control("closing") == {"reason": "diverged"}
    assert opened.running.service.tail.is_damaged


# Erased events


@pytest.fixture
def only_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing come into a window from Postgres: its gateway waits for the stream."""

    async def never(_self: NatsTail) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(NatsTail, "_follow_postgres", never)


@pytest.mark.usefixtures("only_the_stream")
@pytest.mark.parametrize("is_deleted", [True, False])
async def test_an_erased_event_is_the_tombstone_that_postgres_has(
    database: Database,
    nats: NatsServer,
    erasures: Erasures,
    monkeypatch: pytest.MonkeyPatch,
    is_deleted: bool,
) -> None:
    be_patient(monkeypatch)
    monkeypatch.setattr(nats_tail, "RETURN_S", (0.5,))
    async with gateway(database, nats.url) as opened:
        other = opened.plain
        await append(other, *(new_event(user_uuid=OTHER) for _ in range(3)))
        await append(other, new_event(user_uuid=USER), new_event(user_uuid=OTHER))
        await eventually(lambda: opened.feeder.position == 5)
        await erasures.erase_user(USER, reason="test", by="test")
        if is_deleted:
            await delete_message(opened, 4)
        async with running_service(opened.running.settings, database) as late:
            await eventually(lambda: late.service.window.position == 5)
            for running in (late, other):
                frames = running.service.window.frames_after
                await eventually(lambda of=frames: b"causeway.erased" in list(of(0))[3].sse)
            blocks = await replace(opened, running=late).same(5)
            assert [block.event == "causeway.erased" for block in blocks].index(True) == 3
            assert sample(late, "tail_source", source="nats") == 1


async def test_an_event_that_was_lost_and_not_erased_is_served_and_is_an_alarm(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive, lost = Feed.arrive, []

    async def losing(feed: Feed, message: Any) -> None:
        """The consumer was never given the third event, so it numbers on without it."""
        if message.headers and message.headers.get("ce-position") == "3":
            lost.append(message)
            feed._delivered += 1
            return
        await arrive(feed, message)

    monkeypatch.setattr(Feed, "arrive", losing)
    opened = await opening()
    await append(opened.running, new_event(), new_event())
    await append(opened.running, new_event(), new_event(), new_event())
    assert lost
    await opened.same(5)
    assert opened.fallbacks("misfit") >= 1


# On the way


async def test_a_message_that_was_dropped_on_its_way_is_missed_and_read_again(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive, count = Feed.arrive, [0]

    async def dropping(feed: Feed, message: Any) -> None:
        """nats-py drops what a slow consumer does not take: here an event, and no heartbeat."""
        is_event = "ce-position" in (message.headers or {})
        count[0] += is_event
        if not (is_event and count[0] == 40):
            await arrive(feed, message)

    monkeypatch.setattr(Feed, "arrive", dropping)
    opened = await opening()
    async with load(opened) as position:
        await grows(position, 200)
        await opened.reach("nats")
    assert opened.fallbacks("away") == 1


async def test_a_burst_comes_whole_to_a_gateway_that_is_slow(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await opening()
    take, batches = NatsTail._take, []

    async def slowly(tail: NatsTail, events: list[Event]) -> None:
        batches.append(len(events))
        await asyncio.sleep(0.02)
        await take(tail, events)

    monkeypatch.setattr(NatsTail, "_take", slowly)
    await opened.plain.service.eventlog.append(
        [new_event(pad="x" * 5000) for _ in range(1000)], timeout_s=30
    )
    await eventually(lambda: opened.running.service.window.position == 1000)
    assert len(batches) > 1
    await opened.same(1000)
    assert opened.fallbacks("away") == 0


async def test_what_comes_while_postgres_is_asked_for_the_end_is_no_other_history(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await opening()
    running, plain, asked = opened.running.service, opened.plain, 0
    assert isinstance(running.tail, NatsTail)
    eventlog = running.tail._tail._eventlog
    bounds = eventlog.bounds

    async def slowly() -> Bounds:
        """The answer is of before what the window has when it comes."""
        nonlocal asked
        found = await bounds()
        await append(plain)
        await eventually(lambda: running.window.position > found.head_position)
        asked += 1
        return found

    monkeypatch.setattr(eventlog, "bounds", slowly)
    await eventually(lambda: asked == 3)
    assert not running.tail.is_damaged


# Below the window


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Tell for each page below the window whether the stream had it."""
    answers: list[bool] = []
    block = MirroredLog._block

    async def noted(log: MirroredLog, first: int) -> object:
        found = await block(log, first)
        answers.append(found is not None)
        return found

    monkeypatch.setattr(MirroredLog, "_block", noted)
    return answers


async def test_a_reader_below_the_window_reads_the_stream(opening: Open, asked: list[bool]) -> None:
    opened = await opening(window_events=10)
    await append_many(opened.running, 1200)
    await opened.same(1200)
    assert asked
    assert all(asked)


async def test_readers_below_the_window_share_what_is_fetched(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_log, "PROVEN_S", 3600.0)  # whoever comes late finds it as well
    opened = await opening(window_events=10)
    await append_many(opened.running, 600)
    fetched: list[int] = []
    fetch_range = nats_feed.fetch_range

    async def counting(connection: Any, stream: str, first: int, *more: int) -> list[Event]:
        fetched.append(first)
        return await fetch_range(connection, stream, first, *more)

    monkeypatch.setattr(nats_log, "fetch_range", counting)
    found: list[list[Block]] = [[] for _ in range(10)]
    await asyncio.gather(*(follow(opened.running.url, blocks, until=600) for blocks in found))
    assert all(positions(blocks) == list(range(1, 601)) for blocks in found)
    assert sorted(fetched) == sorted(set(fetched)), "none twice"


async def test_a_reader_below_the_stream_reads_postgres_up_to_it(
    opening: Open, asked: list[bool]
) -> None:
    opened = await opening(window_events=10)
    await append_many(opened.running, 600)
    settings = opened.running.settings
    async with connected(settings, "test") as connection:
        await connection.jetstream.purge_stream(settings.nats_stream, seq=301)
    await opened.same(600)
    assert {True, False} == set(asked)


async def test_below_the_window_an_erased_event_is_never_read_from_the_stream(
    opening: Open, erasures: Erasures, asked: list[bool]
) -> None:
    opened = await opening(window_events=10)
    events = [new_event(user_uuid=USER if number == 30 else OTHER) for number in range(1, 101)]
    await append(opened.running, *events)
    await erasures.erase_user(USER, reason="test", by="test")  # the stream still has it
    blocks = await opened.same(100)
    assert blocks[29].event == "causeway.erased"
    assert False in asked


async def test_an_event_that_is_erased_after_it_was_read_is_a_tombstone_before_long(
    opening: Open, erasures: Erasures, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_log, "PROVEN_S", 1.0)
    opened = await opening(window_events=10)
    events = [new_event(user_uuid=USER if number == 30 else OTHER) for number in range(1, 101)]
    await append(opened.running, *events)
    await opened.same(100)
    assert all(asked)
    await erasures.erase_user(USER, reason="test", by="test")
    for service in (opened.running, opened.plain):  # each keeps its page for a while
        async with asyncio.timeout(WITHIN_S):
            found: list[Block] = []
            while not any(block.event == "causeway.erased" for block in found):
                found.clear()
                await follow(service.url, found, until=100)
    await opened.same(100)


@pytest.mark.parametrize(
    "spoil",
    [other_link(30), other_body(30), other_body(1)],
    ids=["another-history", "another-body", "another-body-of-the-first-in-a-block"],
)
async def test_below_the_window_what_is_not_the_logs_is_not_read(
    opening: Open, asked: list[bool], spoil: Spoil
) -> None:
    opened = await opening(window_events=10)
    opened.feeder.spoil = spoil
    await append_many(opened.running, 100)
    await eventually(lambda: opened.feeder.position == 100)
    opened.feeder.spoil = lambda event: event
    await append_many(opened.running, 100)
    await opened.reach("nats")
    await opened.same(200)
    assert False in asked


async def test_resuming_is_checked_as_without_nats(opening: Open) -> None:
    opened = await opening(window_events=10)
    await append_many(opened.running, 100)
    for last_id in ("5.00000000", "1000.00000000", "99.00000000"):
        answers = []
        for service in (opened.running, opened.plain):
            async with reading(service.url, last_event_id=last_id) as reader:
                error = await reader.error()
                answers.append((reader.status, error["code"], error["message"]))
        assert answers[0] == answers[1]


# What it costs Postgres


async def test_while_it_follows_nats_nobody_listens_and_the_log_is_not_read(
    opening: Open, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await opening(roles="stream,ingest")
    tail = opened.running.service.tail
    assert isinstance(tail, NatsTail)
    reads: list[int] = []
    read_after = tail._eventlog.read_after

    async def counting(position: int, **options: Any) -> list[Event]:
        reads.append(position)
        return await read_after(position, **options)

    for eventlog in (tail._eventlog, tail._tail._eventlog):
        monkeypatch.setattr(eventlog, "read_after", counting)
    for _ in range(10):
        await append(opened.running)
    assert reads == []
    listening = "SELECT count(*) FROM pg_stat_activity WHERE query IN ('SELECT 1') AND datname = $1"
    name = await owner.fetchval("SELECT current_database()")
    async with asyncio.timeout(WITHIN_S):
        while await owner.fetchval(listening, name) != 2:  # the feeder, and the other service
            await asyncio.sleep(0.02)


# A cluster


async def test_a_node_of_three_that_is_killed_under_load_costs_no_event(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, request_s=5.0)
    monkeypatch.setattr(nats_feed, "SILENT_S", 1.5)  # its consumer may go with the leader
    with nats_cluster(tmp_path / "cluster") as servers:
        urls = ",".join(server.url for server in servers)
        async with mirrored(database, urls, replicas=3) as opened, load(opened) as position:
            await grows(position)
            leader = await leader_of(opened)
            servers[leader].kill()
            await grows(position, 200)
            await opened.reach("nats")
            servers[leader].start()
            await grows(position, 200)


async def leader_of(opened: Gateway) -> int:
    """Return the number of the server that leads the stream: the worst one to lose."""
    settings = opened.running.settings
    async with asyncio.timeout(WITHIN_S), connected(settings, "test") as connection:
        while True:
            with suppress(NatsError, TimeoutError):  # one that elects a leader answers nobody
                info = await connection.jetstream.stream_info(settings.nats_stream)
                if info.cluster is not None and info.cluster.leader:
                    return int(info.cluster.leader.removeprefix("n"))
            await asyncio.sleep(0.05)
