"""A limited token never sees an event outside its limits, whatever it asks for, and by any way."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.auth import Tokens
from service.db import Connection
from service.event import NewEvent, parse_event
from service.eventlog import EventLog
from service.filter import NAMES_OF_2019, Filter, parse_topics
from service.pages import BATCH, JSON, NDJSON
from tests.bridge import USER, body
from tests.reader import Ended, reading
from tests.running import (
    ADMIN_TOKEN,
    WITHIN_S,
    Database,
    Process,
    Running,
    environment,
    make_settings,
    service_process,
)

TYPES = ("item.created", "ITEM_CREATED", "item.account.updated", "payment.link.updated", "x")
SOURCES = ("default", "retail", "DEFAULT")
USERS = (USER, "00000000-0000-4000-8000-000000000001", None)
PATTERNS = ("item.created", "ITEM_CREATED", "item.*", "item.account.*", "pay*", "x", "*", "none")
_numbers = itertools.count(1)
_names = itertools.count(1)


@dataclass(frozen=True)
class Sent:
    """An event as it was made, and the mark that nobody else's has."""

    type: str
    source: str
    user: str | None
    mark: str

    def new(self) -> NewEvent:
        content = {"user_uuid": self.user} if self.user else {}
        payload = body(self.type, **{"user_uuid": None, "mark": self.mark} | content)
        return parse_event(payload, self.source, datetime.now(UTC))


def one_of_each() -> Iterator[Sent]:
    for type_, source, user in itertools.product(TYPES, SOURCES, USERS):
        yield Sent(type_, source, user, f"mark-{next(_numbers):05}-")


def fits(sent: Sent, wanted: Filter) -> bool:
    """Tell by the words of README whether a filter lets an event in."""
    name = NAMES_OF_2019.get(sent.type, sent.type)
    return (
        (wanted.sources is None or sent.source in wanted.sources)
        and (wanted.user_uuids is None or sent.user in wanted.user_uuids)
        and (
            wanted.topics is None
            or any(name == t or (t[-1] == "*" and name.startswith(t[:-1])) for t in wanted.topics)
        )
    )


topics = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3).map(parse_topics)
sources = st.frozensets(st.sampled_from(SOURCES), min_size=1, max_size=2)
users = st.frozensets(st.sampled_from(USERS[:2]), min_size=1)
wishes = st.builds(Filter, topics=st.none() | topics, sources=st.none() | sources)
limited = st.one_of(
    st.builds(Filter, topics=topics),
    st.builds(Filter, sources=sources),
    st.builds(Filter, user_uuids=users),
    st.builds(Filter, st.none() | topics, sources=sources, user_uuids=st.none() | users),
)


@dataclass
class World:
    """A real process, its log, and what is in it, by position."""

    process: Process
    owner: Connection
    sent: dict[int, Sent]

    async def append(self, events: Iterable[Sent]) -> None:
        made = list(events)
        appended = await EventLog(self.owner).append([it.new() for it in made], timeout_s=30)
        self.sent |= {one.position: it for one, it in zip(appended, made, strict=True)}

    async def token(self, limits: Filter) -> str:
        return await Tokens(make_settings(), self.owner).create(
            f"limited-{next(_names)}", "stream", limits
        )

    def marks_in(self, text: str) -> list[int]:
        """Return the positions of the events that can be seen in `text`."""
        return [position for position, it in self.sent.items() if it.mark in text]

    def let_in(self, *wanted: Filter, until: int = 10**9) -> list[int]:
        """Return the positions, up to `until`, of the events that all filters let in."""
        return [
            position
            for position, it in self.sent.items()
            if position <= until and all(fits(it, filter_) for filter_ in wanted)
        ]


@pytest.fixture
async def world(database: Database, owner: Connection, tmp_path: Path) -> AsyncIterator[World]:
    """The window holds an eighth of the log: a stream from the start reads the rest from it."""
    env = environment(
        DATABASE_URL=database.service_dsn,
        CAUSEWAY_WINDOW_EVENTS="10",
        CAUSEWAY_CHECKPOINT_EVENTS="4",
        CAUSEWAY_HEARTBEAT_S="0.2",
        CAUSEWAY_STREAM_MAX_PER_TOKEN="10",
    )
    with service_process(env, tmp_path / "log") as process:
        it = World(process, owner, {})
        await it.append(one_of_each())
        yield it


def query(wish: Filter) -> str:
    return "&".join(
        [f"type={topic}" for topic in sorted(wish.topics or ())]
        + [f"source={source}" for source in sorted(wish.sources or ())]
    )


@hypothesis_settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    limits=limited,
    wish=wishes,
    media_type=st.sampled_from((JSON, BATCH, NDJSON)),
    format_=st.sampled_from(("", "&format=cloudevents")),
)
async def test_no_way_to_read_leads_past_the_limits(
    world: World, limits: Filter, wish: Filter, media_type: str, format_: str
) -> None:
    token = await world.token(limits)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=world.process.url, headers=headers) as client:
        await _pages(world, client, limits, wish, media_type)
        await _single_events(world, client, limits)
        await _stream(world, token, f"from=start&{query(wish)}{format_}", limits, wish)
        await _as_a_consumer(world, client, token, limits, wish)


async def _pages(
    world: World, client: httpx2.AsyncClient, limits: Filter, wish: Filter, media_type: str
) -> None:
    text, after = "", "0"
    while int(after.partition(".")[0]) < max(world.sent):
        answer = await client.get(
            f"/events?after={after}&limit=20&{query(wish)}", headers={"accept": media_type}
        )
        assert answer.status_code == 200, answer.text
        text, after = text + answer.text, answer.headers["causeway-last-id"]
    assert world.marks_in(text) == world.let_in(limits, wish)


async def _single_events(world: World, client: httpx2.AsyncClient, limits: Filter) -> None:
    for position in range(1, max(world.sent) + 1, 7):
        sent = world.sent[position]
        answer = await client.get(f"/events/{position}")
        assert answer.status_code == (200 if fits(sent, limits) else 404)
        assert (sent.mark in answer.text) is fits(sent, limits)


async def _stream(world: World, token: str, query: str, *wanted: Filter) -> None:
    """Read what is there, and what comes while it is open."""
    async with reading(world.process.url, f"{query}&control=1", token=token) as reader:
        assert reader.status == 200
        for _ in range(2):
            while (reader.last_id or "0").partition(".")[0] != str(max(world.sent)):
                await reader.block()
            await world.append(itertools.islice(one_of_each(), 0, None, 9))
        read_to = int((reader.last_id or "0").partition(".")[0])
    awaited = world.let_in(*wanted, until=read_to)
    assert [block.position for block in reader.seen if block.is_event] == awaited
    assert world.marks_in(repr(reader.seen)) == awaited


async def _as_a_consumer(
    world: World, client: httpx2.AsyncClient, token: str, limits: Filter, wish: Filter
) -> None:
    name = f"consumer-{next(_names)}"
    fields = {
        "types": sorted(wish.topics or ()),
        "sources": sorted(wish.sources or ()),
        "user_uuids": sorted(limits.user_uuids or ()),
    }
    filter_ = {key: values for key, values in fields.items() if values}
    wanted_consumer = {"start": "start", "filter": filter_, "lease_s": 600}
    made = await client.put(f"/consumers/{name}", json=wanted_consumer)
    if made.status_code == 403:
        assert (await client.get(f"/consumers/{name}")).status_code == 404
        return
    assert made.status_code == 201, made.text
    wanted = Filter(wish.topics, sources=wish.sources, user_uuids=limits.user_uuids)
    assert all(fits(it, limits) for it in one_of_each() if fits(it, wanted))
    await _stream(world, token, f"consumer={name}", limits, wanted)


async def test_what_a_token_may_not_see_is_answered_as_if_it_were_not_there(
    world: World,
) -> None:
    token = await world.token(Filter(sources=frozenset({"retail"})))
    headers = {"authorization": f"Bearer {token}"}
    hidden = next(n for n, it in world.sent.items() if it.source == "default")
    async with httpx2.AsyncClient(base_url=world.process.url, headers=headers) as client:
        answers = []
        for position in (hidden, max(world.sent) + 1, 10**9):
            answer = await client.get(f"/events/{position}")
            error = answer.json()["error"]
            del error["request_id"]
            told = {**error, "message": error["message"].replace(str(position), "N")}
            names = sorted(answer.headers.keys() - {"content-length"})
            answers.append((answer.status_code, told, names))
        assert answers[0] == answers[1] == answers[2]
        assert answers[0][0] == 404


@pytest.mark.parametrize("stands_by", [False, True])
async def test_a_consumer_that_is_widened_shows_a_limited_holder_nothing_more(
    service: Running, owner: Connection, stands_by: bool
) -> None:
    limits = Filter(sources=frozenset({"retail"}))
    token = await Tokens(service.settings, owner).create("retail", "stream", limits)
    url = f"{service.url}/consumers/both"
    narrow = {"start": "start", "filter": {"sources": ["retail"]}, "lease_s": 600}
    admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx2.AsyncClient(headers=admin) as client:
        assert (await client.put(url, json=narrow)).status_code == 201
        async with (
            reading(service.url, "consumer=both", token=ADMIN_TOKEN if stands_by else token),
            reading(service.url, "consumer=both&control=1", token=token) as reader,
        ):
            await reader.block()
            assert (await client.put(url, json={"filter": {}})).status_code == 200
            sent = [it for it in one_of_each() if it.source == "default"]
            await EventLog(owner).append([it.new() for it in sent], timeout_s=30)
            with pytest.raises(Ended):
                async with asyncio.timeout(WITHIN_S):
                    while True:
                        await reader.block()
            assert not [block for block in reader.seen if block.is_event]
        async with reading(service.url, "consumer=both", token=token) as reader:
            assert reader.status == 403
            told = str(await reader.error())
            assert not [it for it in sent if it.mark in told]
