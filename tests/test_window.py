"""The window as an array: every cursor sees every position once, whoever appends and trims."""

import gc
import weakref
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.event import Event, cloudevent_block, sse_block
from service.filter import EVERYTHING, Filter
from service.window import CHUNK_BYTES, KEPT_BYTES, Chunk, Frame, View, Window

TOPICS = ("item.created", "item.deleted", "user.deleted")


def event(position: int, *, size: int = 10) -> Event:
    return Event(
        position=position,
        link=position.to_bytes(32, "big"),
        received_at=datetime.fromtimestamp(1_700_000_000 + position, UTC),
        source="default",
        type=TOPICS[position % 3],
        topic=TOPICS[position % 3],
        occurred_at=None,
        item_id=position % 5,
        account_id=None,
        user_uuid=None,
        digest=bytes(32),
        body=b"x" * size,
    )


def frames(first: int, last: int, *, size: int = 10) -> list[Frame]:
    return [Frame(event(position, size=size)) for position in range(first, last + 1)]


def window_of(
    last: int, *, start: int = 0, max_events: int = 1000, max_bytes: int = 10**9, size: int = 10
) -> Window:
    """Return a window begun after `start` that was given everything up to `last`, one by one."""
    window = Window(max_events=max_events, max_bytes=max_bytes)
    window.start(start, start.to_bytes(32, "big"))
    for frame in frames(start + 1, last, size=size):
        window.append([frame])
    return window


def held(window: Window) -> list[int]:
    """Return the positions in the window, oldest first."""
    first = window.position
    while window.holds(first - 1):
        first -= 1
    return [frame.event.position for frame in window.frames_after(first)]


@dataclass(eq=False)
class Bell:
    """A waiter that counts."""

    rings: int = 0

    def wake(self) -> None:
        self.rings += 1


# The array


def test_an_unstarted_window_holds_nothing() -> None:
    window = Window(max_events=10, max_bytes=10)
    assert window.position == -1
    assert not window.holds(0)
    assert window.link_at(0) is None


def test_a_started_window_is_empty_and_holds_its_beginning() -> None:
    window = window_of(7, start=7)
    assert [window.holds(position) for position in (6, 7, 8)] == [False, True, False]
    assert window.link_at(7) == (7).to_bytes(32, "big")
    assert window.link_at(6) is None
    assert held(window) == []


def test_frames_are_found_by_position() -> None:
    window = window_of(12, start=5)
    assert held(window) == [6, 7, 8, 9, 10, 11, 12]
    assert [frame.event.position for frame in window.frames_after(9)] == [10, 11, 12]
    assert list(window.frames_after(12)) == []
    links = {position: window.link_at(position) for position in range(5, 14)}
    known = {position: position.to_bytes(32, "big") for position in range(6, 13)}
    assert links == known | {5: None, 13: None}


@pytest.mark.parametrize("position", [3, 5, 6])
def test_a_hole_or_a_repeat_is_refused(position: int) -> None:
    window = window_of(3)
    with pytest.raises(ValueError, match="does not follow 3"):
        window.append(frames(position, position))
    assert held(window) == [1, 2, 3]


def test_a_restart_forgets_everything() -> None:
    window = window_of(9)
    window.start(2, b"other")
    assert (held(window), window.position, window.link) == ([], 2, b"other")
    window.append(frames(3, 4))
    assert held(window) == [3, 4]


@given(batches=st.lists(st.integers(1, 30), min_size=1, max_size=20), max_events=st.integers(1, 20))
def test_the_window_is_bounded_by_events(batches: list[int], max_events: int) -> None:
    window = window_of(0, max_events=max_events)
    for count in batches:
        window.append(frames(window.position + 1, window.position + count))
        kept = held(window)
        assert min(max_events, window.position) <= len(kept) <= max_events * 9 / 8
        assert kept == list(range(window.position - len(kept) + 1, window.position + 1))


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    max_bytes=st.integers(1, 10_000),
)
def test_the_window_is_bounded_by_bytes_but_keeps_the_newest(
    sizes: list[int], max_bytes: int
) -> None:
    window = window_of(0, max_bytes=max_bytes)
    for position, size in enumerate(sizes, 1):
        window.append(frames(position, position, size=size))
        kept = list(window.frames_after(held(window)[0] - 1))
        total = sum(frame.size for frame in kept)
        assert kept[-1].event.position == position
        assert total <= max_bytes * 9 / 8 or len(kept) == 1
        if (last_dropped := position - len(kept)) > 0:
            dropped = frames(last_dropped, last_dropped, size=sizes[last_dropped - 1])[0]
            assert total + dropped.size > max_bytes, "dropped though there was room"


def test_what_was_trimmed_is_no_longer_held() -> None:
    window = window_of(100, max_events=10)
    first = held(window)[0]
    assert window.holds(first - 1)
    assert not window.holds(first - 2)
    assert window.link_at(first - 1) is None


# Frames and chunks


def test_a_frame_has_both_spellings_and_makes_the_second_once() -> None:
    frame = Frame(event(4))
    assert frame.sse == sse_block(frame.event)
    assert frame.cloudevent == cloudevent_block(frame.event)
    assert frame.cloudevent is frame.cloudevent
    assert frame.received_s == 1_700_000_004.0


def test_all_at_the_same_place_share_one_chunk() -> None:
    window = window_of(5)
    mine = window.view(EVERYTHING, is_cloudevents=False)
    yours = window.view(Filter(), is_cloudevents=False)
    assert mine is yours
    chunk = mine.chunk(2)
    assert yours.chunk(2) is chunk
    assert mine.chunk(3) is not chunk
    assert chunk.data == b"".join(frame.sse for frame in frames(3, 5))


def test_a_chunk_is_made_anew_when_the_window_has_grown() -> None:
    window = window_of(5)
    view = window.view(EVERYTHING, is_cloudevents=False)
    assert view.chunk(2).position == 5
    window.append(frames(6, 6))
    assert view.chunk(2).position == 6
    window.start(0, b"")
    window.append(frames(1, 4))
    assert view.chunk(2).position == 4


def test_views_differ_by_filter_and_by_spelling() -> None:
    window = window_of(6)
    deleted = Filter(topics=frozenset({"user.deleted"}))
    views = [
        window.view(filter_, is_cloudevents=is_cloudevents)
        for filter_ in (EVERYTHING, deleted)
        for is_cloudevents in (False, True)
    ]
    events = [event(position) for position in range(1, 7)]
    assert [view.chunk(0).data for view in views] == [
        b"".join(sse_block(e) for e in events),
        b"".join(cloudevent_block(e) for e in events),
        b"".join(sse_block(e) for e in events if e.topic == "user.deleted"),
        b"".join(cloudevent_block(e) for e in events if e.topic == "user.deleted"),
    ]


def test_a_view_lives_as_long_as_somebody_uses_it() -> None:
    window = window_of(1)
    mine = window.view(EVERYTHING, is_cloudevents=False)
    yours = window.view(EVERYTHING, is_cloudevents=False)
    gone = weakref.ref(mine)
    del mine
    gc.collect()
    assert window.view(EVERYTHING, is_cloudevents=False) is yours
    del yours
    gc.collect()
    assert gone() is None, "a view that nobody uses must not keep its chunks"


def test_readers_far_apart_do_not_fill_the_memory_with_chunks() -> None:
    window = window_of(400, size=CHUNK_BYTES // 4)
    views = [window.view(EVERYTHING, is_cloudevents=is_ce) for is_ce in (False, True)]
    for start in range(4):  # on a log at rest: nothing else would make room
        for view in views:
            position = start
            while position < window.position:
                position = view.chunk(position).position
                kept = sum(len(chunk.data) for v in views for chunk in v._chunks.values())
                assert kept <= KEPT_BYTES
            assert view.chunk(399) is view.chunk(399)


def test_a_chunk_ends_with_the_block_that_fills_it() -> None:
    window = window_of(9, size=CHUNK_BYTES // 3)
    chunk = window.view(EVERYTHING, is_cloudevents=False).chunk(0)
    assert (chunk.position, chunk.sent_to) == (3, 3)
    assert CHUNK_BYTES <= len(chunk.data) < CHUNK_BYTES + CHUNK_BYTES // 3 + 100


def test_a_block_larger_than_a_chunk_is_sent_alone() -> None:
    window = window_of(3, size=2 * CHUNK_BYTES)
    view = window.view(EVERYTHING, is_cloudevents=False)
    assert [view.chunk(position).position for position in range(3)] == [1, 2, 3]


def test_what_does_not_match_is_passed_over_without_a_byte() -> None:
    window = window_of(7)
    view = window.view(Filter(item_ids=frozenset({99})), is_cloudevents=False)
    chunk = view.chunk(2)
    assert (chunk.data, chunk.position, chunk.sent_to) == (b"", 7, None)
    assert chunk.receipts.times_s == ()


def test_a_filtered_chunk_tells_where_it_looked_and_where_it_found() -> None:
    window = window_of(7)
    chunk = window.view(Filter(item_ids=frozenset({4})), is_cloudevents=False).chunk(1)
    assert (chunk.position, chunk.sent_to) == (7, 4)
    assert chunk.data == sse_block(event(4))
    assert chunk.receipts.times_s == (1_700_000_004.0,)


@pytest.mark.parametrize(
    ("count", "size", "scanned_to", "position"),
    [
        pytest.param(3, 10, 50, 50, id="all fit: the reader stands where was looked"),
        pytest.param(0, 10, 50, 50, id="none found"),
        pytest.param(3, 10, 0, 3, id="an unfiltered page says nothing"),
        pytest.param(3, CHUNK_BYTES, 50, 1, id="cut: the reader stands at the last that fit"),
    ],
)
def test_a_page_of_the_log_is_joined_like_the_window(
    count: int, size: int, scanned_to: int, position: int
) -> None:
    view = View(window_of(0), EVERYTHING, is_cloudevents=False)
    chunk = view.join(frames(1, count, size=size), scanned_to=scanned_to)
    assert chunk.position == position
    assert chunk.sent_to == (min(count, position) or None)


# Waiting


def test_a_waiter_is_woken_once_by_what_comes() -> None:
    window, bell = window_of(1), Bell()
    window.add_waiter(bell)
    assert bell.rings == 0
    window.append(frames(2, 2))
    window.append(frames(3, 3))
    assert bell.rings == 1
    window.add_waiter(bell)
    window.start(0, b"")
    assert bell.rings == 2


def test_a_removed_waiter_is_not_woken() -> None:
    window, bell = window_of(1), Bell()
    window.add_waiter(bell)
    window.remove_waiter(bell)
    window.remove_waiter(bell)
    window.append(frames(2, 2))
    assert bell.rings == 0


def test_a_waiter_that_waits_again_at_once_is_woken_next_time() -> None:
    window = window_of(0)

    @dataclass(eq=False)
    class Insatiable(Bell):
        rung_at: list[int] = field(default_factory=list)

        def wake(self) -> None:
            self.rung_at.append(window.position)
            window.add_waiter(self)

    waiter = Insatiable()
    window.add_waiter(waiter)
    window.append(frames(1, 1))
    window.append(frames(2, 3))
    assert waiter.rung_at == [1, 3]


# Any interleaving


@dataclass(eq=False)
class Cursor:
    """A subscriber: where it stands and what it got."""

    view: View
    started_at: int
    position: int
    got: list[bytes] = field(default_factory=list)


class Interleavings(RuleBasedStateMachine):
    """Appends (which trim) and cursors that read when they like, from the window or the log."""

    FILTERS = (
        EVERYTHING,
        Filter(topics=frozenset({"item.*"})),
        Filter(item_ids=frozenset({1, 2}), topics=frozenset({"user.deleted"})),
        Filter(item_ids=frozenset()),
    )

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(max_events=12, max_bytes=3000)
        self.window.start(0, b"")
        self.log: list[Frame] = []
        self.cursors: list[Cursor] = []

    @rule(sizes=st.lists(st.sampled_from((1, 40, 400, CHUNK_BYTES)), min_size=1, max_size=9))
    def append(self, sizes: list[int]) -> None:
        first = len(self.log) + 1
        new = [Frame(event(first + n, size=size)) for n, size in enumerate(sizes)]
        self.log += new
        self.window.append(new)

    @rule(data=st.data(), filter_=st.sampled_from(FILTERS), is_cloudevents=st.booleans())
    def subscribe(self, data: st.DataObject, filter_: Filter, is_cloudevents: bool) -> None:
        position = data.draw(st.integers(0, len(self.log)))
        view = self.window.view(filter_, is_cloudevents=is_cloudevents)
        self.cursors.append(Cursor(view, position, position))

    @rule(n=st.integers(0, 50))
    def read(self, n: int) -> None:
        if self.cursors:
            self.step(self.cursors[n % len(self.cursors)])

    def step(self, cursor: Cursor) -> None:
        if cursor.position >= self.window.position:
            return
        before = cursor.position
        if self.window.holds(before):
            chunk = cursor.view.chunk(before)
            assert cursor.view.chunk(before) is chunk
        else:
            chunk = self.page_of_the_log(cursor)
        assert before < chunk.position <= self.window.position
        assert chunk.sent_to is None or before < chunk.sent_to <= chunk.position
        cursor.position = chunk.position
        cursor.got.append(chunk.data)

    def page_of_the_log(self, cursor: Cursor) -> Chunk:
        """Read five positions of the log, as `read_matching` would answer."""
        until = min(cursor.position + 5, len(self.log))
        matches = cursor.view.filter.matcher()
        page = [f for f in self.log[cursor.position : until] if matches(f.event)]
        return cursor.view.join(page, scanned_to=until)

    @invariant()
    def every_cursor_got_each_match_once_and_in_order(self) -> None:
        for cursor in self.cursors:
            matches = cursor.view.filter.matcher()
            seen = [f for f in self.log[cursor.started_at : cursor.position] if matches(f.event)]
            is_cloudevents = cursor.view._is_cloudevents
            expected = b"".join(f.cloudevent if is_cloudevents else f.sse for f in seen)
            assert b"".join(cursor.got) == expected

    def teardown(self) -> None:
        for cursor in self.cursors:
            while cursor.position < self.window.position:
                self.step(cursor)
        self.every_cursor_got_each_match_once_and_in_order()


TestInterleavings = Interleavings.TestCase
