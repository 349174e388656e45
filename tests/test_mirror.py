"""The mirror: its stream's sequence numbers are the positions, whatever happens on the way."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from prometheus_client import CollectorRegistry

from service.db import Connection
from service.erase import Erasures
from service.errors import MirrorUnavailable
from service.eventlog import EventLog
from service.mirror_metrics import MirrorMetrics
from service.mirror_stream import MirrorStream
from service.mirrored import message_of
from service.nats import Connection as NatsConnection
from service.nats import connected
from service.publisher import publishing
from service.waiting import first_of
from tests.bridge import USER, new_event
from tests.certificates import Authority
from tests.commands import command
from tests.conftest import REQUIRE_ALL
from tests.mirroring import (
    PATIENCE,
    PATIENT_S,
    STREAM,
    alone,
    ask,
    assert_mirrored,
    client_of,
    fill,
    make_stream,
    position_of,
    publishes,
    read_stream,
    until_level,
    value,
)
from tests.nats_proxy import nats_proxy
from tests.nats_server import NatsServer, nats_cluster, nats_server, version_of
from tests.running import (
    ROOT,
    WITHIN_S,
    Database,
    Running,
    environment,
    eventually,
    make_settings,
    running_service,
)
from tests.stored import prune, remove
from tests.test_ops import until
from tests.test_receive import Start

DEBIAN = Path("/usr/sbin/nats-server")


@pytest.fixture(autouse=True)
def _patience_with_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    """What NATS has not answered yet is neither lost nor unsure; tests that need that say so."""
    for module, name in PATIENCE:
        monkeypatch.setattr(f"{module}.{name}", PATIENT_S)


@pytest.fixture
def too_late(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Once set, whoever waits for an acknowledgement has waited for too long."""
    event = asyncio.Event()

    async def first_or_too_late(*events: asyncio.Event, timeout_s: float) -> bool:
        return await first_of(*events, event, timeout_s=timeout_s)

    monkeypatch.setattr("service.publisher.first_of", first_or_too_late)
    return event


async def until_noted(mirror: Running, words: str) -> None:
    """Wait until `/readyz` says so of the mirror: it does a moment after the mirror has stopped."""
    async with asyncio.timeout(WITHIN_S):
        while words not in await note_of(mirror):
            await asyncio.sleep(0.05)


async def note_of(mirror: Running) -> str:
    """Return what `/readyz` says of the mirror."""
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{mirror.url}/readyz")
    note: str = answer.json()["notes"]["mirror"]
    return note


async def until_misfit(mirror: Running, words: str) -> None:
    """Wait until the mirror has stopped, and says why."""
    async with asyncio.timeout(WITHIN_S):
        while not re.search(
            f"^stopped: .*{words}.* `causeway mirror check`", await note_of(mirror)
        ):
            await asyncio.sleep(0.05)
    assert value(mirror, "causeway_mirror_misfit") == 1
    assert value(mirror, "causeway_mirror_active") == 0
    await until(mirror, "/readyz", 200)
    assert mirror.fatal == []


async def test_a_hundred_thousand_events_have_their_positions_as_sequence_numbers(
    start: Start, service: Running, tmp_path: Path
) -> None:
    with nats_server(tmp_path / "quick", syncs=False) as nats:
        eventlog = service.service.eventlog
        await fill(eventlog, 90_000)
        mirror = await start(roles="mirror", nats_url=nats.url)
        await until_level(mirror, 90_000, within_s=180)
        await fill(eventlog, 10_000)
        await until_level(mirror, 100_000, within_s=180)
        assert await assert_mirrored(nats, eventlog) == 100_000
        assert publishes(mirror, "acked") == 100_000
        assert value(mirror, "causeway_mirror_lag_events") == 0
        await eventually(lambda: value(mirror, "causeway_mirror_lag_seconds") == 0)
        assert await note_of(mirror) == "mirroring"


async def test_an_event_is_in_the_stream_at_once(
    database: Database, service: Running, nats: NatsServer
) -> None:
    """Woken by LISTEN: polls are an hour apart."""
    settings = make_settings(roles="mirror", nats_url=nats.url)
    settings = settings.model_copy(update={"poll_s": 3600.0})
    async with running_service(settings, database) as mirror:
        await eventually(lambda: value(mirror, "causeway_mirror_active") == 1)
        for position in (1, 2):
            await fill(service.service.eventlog, 1)
            await until_level(mirror, position)


@contextmanager
def worker(env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a mirror as a process of its own until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.mirror_worker"], env=env, cwd=ROOT
    ) as popen:
        try:
            yield popen
        finally:
            popen.kill()


@pytest.mark.parametrize(
    ("sent", "within", "answered", "in_stream"),
    [
        (0, 0, None, 0),
        (25, 0, None, 25),
        (25, 200, None, 25),
        (None, 0, 0, 60),
        (None, 0, 25, 60),
    ],
    ids=["before", "between-publishes", "within-a-publish", "before-answers", "between-answers"],
)
async def test_a_mirror_killed_anywhere_neither_skips_nor_doubles(
    start: Start,
    service: Running,
    database: Database,
    nats: NatsServer,
    sent: int | None,
    within: int,
    answered: int | None,
    in_stream: int,
) -> None:
    """And what it had sent arrives after another has taken over: that is refused."""
    eventlog = service.service.eventlog
    await make_stream(nats, duplicate_window=0.1)
    await fill(eventlog, 60)
    async with nats_proxy(nats.port, publishes=sent, answers=answered, within=within) as proxy:
        env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_NATS_URL=proxy.url)
        with worker(env) as killed:
            await eventually(lambda: proxy.has_stopped)
            standby = await start(roles="mirror", nats_url=nats.url, poll_s=0.1)
            await eventually(lambda: _last(nats) == in_stream)
            assert value(standby, "causeway_mirror_active") == 0
            killed.kill()
        await until_level(standby, 60)
        await asyncio.sleep(1)  # the message ids are forgotten: the numbers alone refuse them
        await proxy.let_late_ones_arrive()
        await fill(eventlog, 10)
        await until_level(standby, 70)
    assert await assert_mirrored(nats, eventlog) == 70
    assert publishes(standby, "acked") == 70 - in_stream


async def test_a_publish_that_timed_out_but_arrived_is_there_once(
    start: Start, service: Running, nats: NatsServer, too_late: asyncio.Event
) -> None:
    eventlog = service.service.eventlog
    async with nats_proxy(nats.port, answers=3) as proxy:
        await make_stream(nats)
        await fill(eventlog, 5)
        mirror = await start(roles="mirror", nats_url=proxy.url)
        await eventually(lambda: position_of(mirror) == 3 and proxy.has_stopped)
        await eventually(lambda: _last(nats) == 5)
        too_late.set()
        await until_noted(mirror, "acknowledged nothing")
        assert publishes(mirror, "unsure") == 2
        too_late.clear()
        proxy.open()
        await fill(eventlog, 5)
        await until_level(mirror, 10)
    assert await assert_mirrored(nats, eventlog) == 10
    assert (publishes(mirror, "acked"), publishes(mirror, "unsure")) == (8, 2)


async def test_what_follows_a_publish_that_nats_lost_is_refused_and_sent_again(
    start: Start, service: Running, nats: NatsServer
) -> None:
    """A cluster loses some when its leader changes, and takes those that come after."""
    eventlog = service.service.eventlog
    await make_stream(nats)
    await fill(eventlog, 40)
    async with nats_proxy(nats.port, publishes=9, drops=True) as proxy:
        mirror = await start(roles="mirror", nats_url=proxy.url)
        await until_level(mirror, 40)
        assert publishes(mirror, "refused") > 0
    assert await assert_mirrored(nats, eventlog) == 40


async def test_two_mirrors_that_both_believe_to_be_alone_do_no_harm(
    database: Database, service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sessions died unseen, and the lease was given twice."""
    monkeypatch.setattr("service.mirror_lease._SQL.try_lease", "SELECT $1 <> ''")
    monkeypatch.setattr("service.mirror.RETRY_S", 0.01)
    eventlog = service.service.eventlog
    with nats_server(tmp_path / "quick", syncs=False) as nats:
        settings = make_settings(roles="mirror", nats_url=nats.url)
        async with (
            running_service(settings, database) as one,
            running_service(settings, database) as two,
        ):
            for _ in range(20):
                await fill(eventlog, 100)
            await eventually(lambda: max(position_of(one), position_of(two)) == 2000)
            assert await assert_mirrored(nats, eventlog) == 2000
            acked = publishes(one, "acked") + publishes(two, "acked")
            assert acked + publishes(one, "unsure") + publishes(two, "unsure") >= 2000


async def test_nats_goes_away_and_comes_back(
    start: Start, service: Running, nats: NatsServer
) -> None:
    eventlog = service.service.eventlog
    mirror = await start(roles="mirror", nats_url=nats.url)
    await fill(eventlog, 50)
    await until_level(mirror, 50)
    nats.kill()
    await fill(eventlog, 50)
    await eventually(lambda: value(mirror, "causeway_mirror_lag_events") == 50)
    await eventually(lambda: value(mirror, "causeway_mirror_lag_seconds") > 0)
    await eventually(lambda: value(mirror, "causeway_mirror_active") == 0)
    await until_noted(mirror, "NATS cannot answer now")
    nats.start()
    await until_level(mirror, 100)
    assert await assert_mirrored(nats, eventlog) == 100
    assert await note_of(mirror) == "mirroring"


async def test_a_file_to_log_in_with_that_is_lost_interrupts_the_mirror(
    start: Start, service: Running, nats: NatsServer, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(Authority(tmp_path).pem())
    mirror = await start(roles="mirror", nats_url=nats.url, nats_ca=ca)
    await eventually(lambda: value(mirror, "causeway_mirror_active") == 1)
    lost = ca.rename(tmp_path / "lost.pem")
    nats.kill()
    nats.start()
    await fill(service.service.eventlog, 5)
    await until_noted(mirror, "CAUSEWAY_NATS_CA")
    lost.rename(ca)
    await until_level(mirror, 5)


async def test_a_nats_that_hangs_is_left_and_found_again(
    start: Start, service: Running, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More waits to be sent than the sockets take, so that it hangs in the midst of a publish."""
    clients: list[Client] = []

    @asynccontextmanager
    async def noted(*arguments: Any) -> AsyncIterator[NatsConnection]:
        async with connected(*arguments) as connection:
            clients.append(connection.client)
            yield connection

    monkeypatch.setattr("service.mirror.connected", noted)
    eventlog = service.service.eventlog
    mirror = await start(roles="mirror", nats_url=nats.url, poll_s=60.0)
    await fill(eventlog, 1)
    await until_level(mirror, 1)
    nats.freeze()
    clients[-1]._flush_timeout = 0.5
    monkeypatch.setattr("service.publisher.ACK_TIMEOUT_S", 0.5)
    await fill(eventlog, 200, text="x" * 100_000)
    await eventually(lambda: value(mirror, "causeway_mirror_active") == 0)
    await eventually(lambda: value(mirror, "causeway_mirror_lag_seconds") > 0)
    monkeypatch.setattr("service.publisher.ACK_TIMEOUT_S", PATIENT_S)
    nats.thaw()
    await until_level(mirror, 201)
    assert await assert_mirrored(nats, eventlog) == 201
    assert mirror.fatal == []


async def test_the_stream_is_made_as_the_settings_say(start: Start, nats: NatsServer) -> None:
    mirror = await start(
        roles="mirror",
        nats_url=nats.url,
        nats_stream="bank",
        nats_retention_s=3600,
        nats_retention_bytes="10MB",
    )
    await eventually(lambda: nats.last_sequence("bank") == 0)
    async with client_of(nats) as client:
        config = (await client.jetstream(timeout=WITHIN_S).stream_info("bank")).config
    assert (config.max_age, config.max_bytes) == (3600, 10_000_000)
    assert (config.subjects, config.storage, config.num_replicas) == (["bridge.>"], "file", 1)
    assert mirror.fatal == []


async def test_a_cluster_may_lose_the_streams_leader_while_it_is_filled(
    start: Start, service: Running, tmp_path: Path
) -> None:
    eventlog = service.service.eventlog
    with nats_cluster(tmp_path, syncs=False) as servers:
        urls = ",".join(server.url for server in servers)
        mirror = await start(roles="mirror", nats_url=urls, nats_replicas=3)
        filling = asyncio.create_task(_fill_slowly(eventlog, batches=100, events=20))
        await eventually(lambda: position_of(mirror) > 200)
        leader = await _leader(servers[0])
        [lost] = [server for server in servers if server.folder.name == leader]
        lost.kill()
        await filling
        await until_level(mirror, 2000, within_s=180)
        [left, _] = [server for server in servers if server is not lost]
        assert await assert_mirrored(left, eventlog) == 2000


async def test_postgres_goes_away_and_comes_back(
    start: Start, service: Running, nats: NatsServer, owner: Connection
) -> None:
    """Each time, all sessions are lost, the lease's as well."""
    eventlog = service.service.eventlog
    mirror = await start(roles="mirror", nats_url=nats.url, poll_s=0.05)
    for position in (10, 20, 30):
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'causeway'"
        )
        await _append_again(eventlog, 10)
        await until_level(mirror, position)
    assert await assert_mirrored(nats, eventlog) == 30


async def test_a_mirror_whose_lease_is_lost_mirrors_no_more_until_it_has_it_again(
    start: Start, service: Running, nats: NatsServer, owner: Connection
) -> None:
    """Its session in Postgres is ended, and no other."""
    holder = (
        "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE classid::bigint = hashtext('causeway.mirror')::bigint & 4294967295 "
        "AND datname = current_database() AND granted"
    )
    mirror = await start(roles="mirror", nats_url=nats.url)
    await fill(service.service.eventlog, 5)
    await until_level(mirror, 5)
    lost = await owner.fetchval(holder)
    await owner.execute("SELECT pg_terminate_backend($1)", lost)
    async with asyncio.timeout(WITHIN_S):
        while await owner.fetchval(holder) in (None, lost):
            await asyncio.sleep(0.05)
    await fill(service.service.eventlog, 5)
    await until_level(mirror, 10)


async def test_no_more_is_on_its_way_than_the_window_says(
    start: Start,
    service: Running,
    nats: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    too_late: asyncio.Event,
) -> None:
    monkeypatch.setattr("service.mirror.RETRY_S", 600.0)
    await make_stream(nats)
    await fill(service.service.eventlog, 50)
    async with nats_proxy(nats.port, answers=0) as proxy:
        mirror = await start(roles="mirror", nats_url=proxy.url, nats_window_events=10)
        await eventually(lambda: proxy.publishes.passed == 10)
        too_late.set()
        await eventually(lambda: publishes(mirror, "unsure") > 0)
        assert publishes(mirror, "unsure") == proxy.publishes.passed == 10


@pytest.mark.parametrize(("to", "sequence"), [(2, 3), (3, 2), (3, 3), (2, 1)])
async def test_an_acknowledgement_of_another_number_or_out_of_turn_ends_it(
    nats: NatsServer, to: int, sequence: int
) -> None:
    """None counts as acknowledged because another one was."""
    metrics = MirrorMetrics(CollectorRegistry())
    async with (
        connected(make_settings(nats_url=nats.url), "a test") as connection,
        publishing(connection, STREAM, 0, 10, metrics) as publisher,
    ):
        publisher.published = 3
        inbox = publisher.answers.removesuffix("*")
        client = connection.client
        await publisher.hear(Msg(client, subject=f"{inbox}1", data=b'{"seq":1}'))
        assert publisher.position == 1
        answer = b'{"seq":%d}' % sequence
        await publisher.hear(Msg(client, subject=f"{inbox}{to}", data=answer))
        with pytest.raises(MirrorUnavailable, match=f"acknowledged {sequence}, position 2 was due"):
            await publisher.settle()
        assert publisher.position == 1


async def test_a_stream_that_is_made_anew_is_filled_though_nothing_arrives(
    start: Start, database: Database, service: Running, nats: NatsServer
) -> None:
    mirror = await start(roles="mirror", nats_url=nats.url, poll_s=0.1)
    await fill(service.service.eventlog, 20)
    await until_level(mirror, 20)
    where = {"DATABASE_URL": database.service_dsn, "CAUSEWAY_NATS_URL": nats.url}
    done = await command("mirror", "rebuild", "--yes", **where)
    assert done.out == "the stream CAUSEWAY is empty, and begins at position 1\n", done.err
    await eventually(lambda: _last(nats) == 20)
    assert await assert_mirrored(nats, service.service.eventlog) == 20


async def test_a_stream_is_made_anew_although_the_mirror_was_quicker(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(nats_url=nats.url)
    async with connected(settings, "a test") as connection:
        stream = MirrorStream(connection, STREAM)
        delete, deletions = stream.delete, 0

        async def then_mirror() -> None:
            """Delete it; the first time a mirror finds none, and makes it, before anybody else."""
            nonlocal deletions
            await delete()
            deletions += 1
            if deletions == 1:
                await stream.create(settings, "1", 1)

        monkeypatch.setattr(stream, "delete", then_mirror)
        await stream.remake(settings, "1", 3)
        seen = await stream.look()
    assert seen is not None
    assert (seen.first, seen.last, deletions) == (3, 2, 2)


async def test_a_stream_that_was_deleted_is_made_anew(
    start: Start, service: Running, nats: NatsServer
) -> None:
    eventlog = service.service.eventlog
    mirror = await start(roles="mirror", nats_url=nats.url, poll_s=0.1)
    await fill(eventlog, 20)
    await until_level(mirror, 20)
    await ask(nats, f"DELETE.{STREAM}")
    await fill(eventlog, 20)
    await eventually(lambda: _last(nats) == 40)
    assert await assert_mirrored(nats, eventlog) == 40


async def test_a_stream_that_lost_its_end_gets_it_again(
    start: Start, service: Running, nats: NatsServer, tmp_path: Path
) -> None:
    """As a server does that crashes before it has synced: its store is put back to an older one."""
    eventlog = service.service.eventlog
    mirror = await start(roles="mirror", nats_url=nats.url)
    await fill(eventlog, 20)
    await until_level(mirror, 20)
    nats.stop()
    shutil.copytree(nats.folder / "store", tmp_path / "older")
    nats.start()
    await fill(eventlog, 20)
    await until_level(mirror, 40)
    nats.kill()
    shutil.rmtree(nats.folder / "store")
    shutil.copytree(tmp_path / "older", nats.folder / "store")
    nats.start()
    nats.wait()
    await eventually(lambda: _last(nats) == 40)
    await fill(eventlog, 5)
    await until_level(mirror, 45)
    assert await assert_mirrored(nats, eventlog) == 45


@pytest.mark.parametrize("poll_s", [0.05, 60.0], ids=["seen", "unseen"])
async def test_a_stream_that_lost_events_goes_on_with_holes(
    start: Start, service: Running, nats: NatsServer, poll_s: float
) -> None:
    """Purged to 10, its newest deleted, then all purged: readers find them in Postgres."""
    eventlog = service.service.eventlog
    mirror = await start(roles="mirror", nats_url=nats.url, poll_s=poll_s)
    await fill(eventlog, 20)
    await until_level(mirror, 20)
    await ask(nats, f"PURGE.{STREAM}", seq=10)
    await ask(nats, f"MSG.DELETE.{STREAM}", seq=20)
    await fill(eventlog, 5)
    await until_level(mirror, 25)
    assert alone(await read_stream(nats)) == [*range(10, 20), *range(21, 26)]
    await ask(nats, f"PURGE.{STREAM}")
    await fill(eventlog, 5)
    await until_level(mirror, 30)
    assert alone(await read_stream(nats)) == [*range(26, 31)]


async def test_a_stream_of_another_history_stops_the_mirror_until_it_is_made_anew(
    start: Start, database: Database, service: Running, nats: NatsServer, owner: Connection
) -> None:
    eventlog = service.service.eventlog
    first = await start(roles="mirror", nats_url=nats.url, poll_s=0.1)
    await fill(eventlog, 10)
    await until_level(first, 10)
    await remove(owner, 8, 10)  # as a restore of an older backup would
    await until_misfit(first, "the stream ends at 10, the log at 7: the log was restored")
    await fill(eventlog, 5)
    await until_misfit(first, r"position 10 is 10\.\w+ in the stream, 10\.\w+ in the log")
    where = {"DATABASE_URL": database.service_dsn, "CAUSEWAY_NATS_URL": nats.url}
    checked = await command("mirror", "check", **where)
    assert checked.code == 1
    assert "position 10 is 10." in checked.err
    done = await command("mirror", "rebuild", "--yes", "--from", "3", **where)
    assert done.out == "the stream CAUSEWAY is empty, and begins at position 3\n", done.err
    await until_level(first, 12)
    assert await assert_mirrored(nats, eventlog, after=2) == 10
    assert value(first, "causeway_mirror_misfit") == 0
    checked = await command("mirror", "check", **where)
    assert checked.out == "the stream CAUSEWAY fits: positions 3 to 12, 0 behind the log\n"


async def test_a_log_that_is_replaced_is_not_mirrored_over_the_old_one(
    start: Start, service: Running, nats: NatsServer, owner: Connection
) -> None:
    """The mirror looks for nothing else than what follows: polls are a minute apart."""
    eventlog = service.service.eventlog
    mirror = await start(roles="mirror", nats_url=nats.url, poll_s=60.0)
    await fill(eventlog, 10)
    await until_level(mirror, 10)
    await remove(owner, 8, 10)
    await fill(eventlog, 5)
    await eventually(lambda: value(mirror, "causeway_mirror_misfit") == 1)
    assert len(await read_stream(nats)) == 10


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject 1"),
        ({"subjects": ["bridge.default.>"]}, "subjects"),
        ({"description": "Causeway's log 0"}, "mirrors another log"),
        ({"deny_delete": True}, "deny_delete"),
        ({"retention": "workqueue"}, "retention 'workqueue'"),
    ],
)
async def test_a_stream_that_could_not_hold_the_log_stops_the_mirror(
    start: Start, nats: NatsServer, config: dict[str, object], words: str
) -> None:
    await make_stream(nats, **config)
    mirror = await start(roles="mirror", nats_url=nats.url)
    await until_misfit(mirror, words)


async def test_a_message_that_is_no_event_stops_the_mirror(
    start: Start, service: Running, nats: NatsServer
) -> None:
    await fill(service.service.eventlog, 3)
    await make_stream(nats)
    async with client_of(nats) as client:
        await client.jetstream(timeout=WITHIN_S).publish("bridge.x", b"{}")
    mirror = await start(roles="mirror", nats_url=nats.url)
    await until_misfit(mirror, "sequence 1: a message of the stream is no event")


async def test_an_event_in_another_place_stops_the_mirror(
    start: Start, service: Running, nats: NatsServer
) -> None:
    await fill(service.service.eventlog, 3)
    [_, second, _] = await service.service.eventlog.read_after(0)
    message = message_of(second)
    await make_stream(nats)
    async with client_of(nats) as client:
        await client.jetstream(timeout=WITHIN_S).publish(
            message.subject, message.body, headers=message.headers
        )
    mirror = await start(roles="mirror", nats_url=nats.url)
    await until_misfit(mirror, "sequence 1 of the stream holds position 2")


async def test_an_event_too_large_for_the_server_stops_the_mirror_with_its_size(
    start: Start, service: Running, tmp_path: Path
) -> None:
    with nats_server(tmp_path / "small", max_payload="4KB") as nats:
        mirror = await start(roles="mirror", nats_url=nats.url)
        await fill(service.service.eventlog, 3)
        await fill(service.service.eventlog, 1, text="x" * 4000)
        await until_misfit(mirror, r"position 4 is \d+ bytes long .* max_payload is 4096: raise it")
        assert len(await read_stream(nats)) == 3


async def test_what_was_erased_from_the_log_is_overwritten_in_the_stream(
    start: Start, service: Running, nats: NatsServer
) -> None:
    eventlog = service.service.eventlog
    mark = "b4d0c0de"
    await fill(eventlog, 3, user_uuid="0" * 8 + USER[8:], item_id=1)
    await fill(eventlog, 2, item_id=77, secret=mark)
    mirror = await start(roles="mirror", nats_url=nats.url, poll_s=0.1)
    await until_level(mirror, 5)
    assert _is_on_disk(nats, mark)
    await _erase(service, USER)
    await eventually(lambda: not _is_on_disk(nats, mark))
    assert alone(await read_stream(nats)) == [1, 2, 3]
    await fill(eventlog, 2, user_uuid="0" * 8 + USER[8:], item_id=1)
    await until_level(mirror, 7)
    assert alone(await read_stream(nats)) == [1, 2, 3, 6, 7]
    found = mirror.service.metrics.registry.get_sample_value("causeway_mirror_erased_total")
    assert found == 2


async def test_what_was_erased_while_no_mirror_ran_is_overwritten_when_one_does(
    start: Start, database: Database, service: Running, nats: NatsServer
) -> None:
    """And what it publishes later is a tombstone from the start."""
    eventlog = service.service.eventlog
    await fill(eventlog, 2, item_id=77, secret="b4d0c0de")
    settings = make_settings(roles="mirror", nats_url=nats.url)
    async with running_service(settings, database) as mirror:
        await until_level(mirror, 2)
    await fill(eventlog, 2, item_id=77, secret="b4d0c0de")
    await _erase(service, USER)
    again = await start(roles="mirror", nats_url=nats.url)
    await until_level(again, 4)
    found = await read_stream(nats)
    assert alone(found) == [3, 4]
    assert all(b'"erased":true' in body for _, _, body in found)
    assert not _is_on_disk(nats, "b4d0c0de")


async def test_a_pruned_log_begins_where_it_begins(
    start: Start, service: Running, nats: NatsServer, owner: Connection
) -> None:
    eventlog = service.service.eventlog
    await fill(eventlog, 20)
    await prune(owner, 12)
    mirror = await start(roles="mirror", nats_url=nats.url)
    await until_level(mirror, 20)
    assert await assert_mirrored(nats, eventlog, after=12) == 8


async def test_a_log_pruned_past_the_streams_end_stops_the_mirror(
    start: Start, database: Database, service: Running, nats: NatsServer, owner: Connection
) -> None:
    settings = make_settings(roles="mirror", nats_url=nats.url)
    await fill(service.service.eventlog, 10)
    async with running_service(settings, database) as mirror:
        await until_level(mirror, 10)
    await fill(service.service.eventlog, 10)
    await prune(owner, 15)
    again = await start(roles="mirror", nats_url=nats.url)
    await until_misfit(again, "the stream ends at 10, .* no longer has what follows: .* at 16")


async def test_an_old_server_mirrors_a_whole_log_and_refuses_a_pruned_one(
    start: Start, service: Running, owner: Connection, tmp_path: Path
) -> None:
    """Debian 12 has 2.9, which begins every stream at 1."""
    if not DEBIAN.exists():
        (pytest.fail if REQUIRE_ALL else pytest.skip)("Debian's nats-server is not installed")
    if version_of(str(DEBIAN)) >= (2, 10):
        pytest.skip("Debian's nats-server is not an old one")
    eventlog = service.service.eventlog
    with nats_server(tmp_path / "old", program=str(DEBIAN)) as nats:
        mirror = await start(roles="mirror", nats_url=nats.url, poll_s=0.1)
        await fill(eventlog, 600, item_id=77, secret="b4d0c0de")
        await until_level(mirror, 600)
        assert await assert_mirrored(nats, eventlog) == 600
        await _erase(service, USER)
        await eventually(lambda: not _is_on_disk(nats, "b4d0c0de"))
        await prune(owner, 400)
        await ask(nats, f"DELETE.{STREAM}")
        await until_misfit(mirror, "begins at position 401, .* 2.10 or newer is needed")


async def _fill_slowly(eventlog: EventLog, *, batches: int, events: int) -> None:
    for _ in range(batches):
        await fill(eventlog, events)
        await asyncio.sleep(0.01)


async def _leader(nats: NatsServer) -> str:
    """Return the name of the server that leads the stream, once one does."""
    leader: str | None = None
    async with asyncio.timeout(WITHIN_S):
        while not leader:
            cluster = (await ask(nats, f"INFO.{STREAM}"))["cluster"]
            assert isinstance(cluster, dict)
            leader = cluster.get("leader")
    return leader


async def _append_again(eventlog: EventLog, events: int) -> None:
    """Append, until the database has come back; the same events are the same."""
    batch = [new_event() for _ in range(events)]
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await eventlog.append(batch, timeout_s=30)
                return
            except Exception:  # noqa: BLE001 - the session was just ended
                await asyncio.sleep(0.05)


async def _erase(service: Running, user: str) -> None:
    erasures = Erasures(service.service.eventlog._readers)
    assert (await erasures.erase_user(user, reason="test", by="test")).events > 0


def _is_on_disk(nats: NatsServer, text: str) -> bool:
    """Is `text` in any file of the server's store?"""
    for path in (nats.folder / "store").rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # it may replace one meanwhile
            if text.encode() in path.read_bytes():
                return True
    return False


def _last(nats: NatsServer) -> int | None:
    """Return the stream's last sequence number, as the server's monitoring says."""
    return nats.last_sequence(STREAM)
