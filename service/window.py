"""The newest events in memory, as frames ready to be written, found by position.

Positions are dense, so the window is an array: the frame of position `p` is at `p - base`. A
subscriber is a cursor, not a queue: nothing is kept for it and nothing is dropped for it. All who
stand at the same cursor with the same view share one joined chunk, built once. Bounded by events
and by bytes; what falls out is read from the log.

Knows neither SQL nor HTTP. All of it runs in one event loop and never awaits but in `wait`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

from service.event import Event, cloudevent_block, sse_block
from service.filter import Filter
from service.latency import Receipts

CHUNK_BYTES = 256 * 1024
KEPT_BYTES = 16 * 1024 * 1024  # of chunks in all views: readers far apart share none of them
TRIM_SLACK = 8  # trim when an eighth is too much: moving an array costs its length


class Frame:
    """One event with its spellings; that of CloudEvents is made when it is first asked for."""

    __slots__ = ("_cloudevent", "event", "received_s", "size", "sse")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.sse = sse_block(event)
        self.received_s = event.received_at.timestamp()
        self.size = 2 * len(self.sse) + len(event.body)  # as if both spellings were made
        self._cloudevent: bytes | None = None

    @property
    def cloudevent(self) -> bytes:
        if self._cloudevent is None:
            self._cloudevent = cloudevent_block(self.event)
        return self._cloudevent


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frames joined for one write.

    `position` is where a reader stands after it, `link` the one there, where it is known;
    `positions` are those of the events in it, none if none matched (then `data` is empty).
    """

    data: bytes
    position: int
    positions: tuple[int, ...]
    receipts: Receipts
    link: bytes | None

    @property
    def sent_to(self) -> int | None:
        """The position of the last event in it."""
        return self.positions[-1] if self.positions else None


class Waiter(Protocol):
    """Whoever wants to know that something came. `wake` must not wait."""

    def wake(self) -> None: ...


class View:
    """How some subscribers look at the window: a filter and a spelling; caches their chunks."""

    def __init__(self, window: "Window", filter_: Filter, is_cloudevents: bool) -> None:
        self.filter = filter_
        self._window = window
        self._matches = None if filter_.is_everything else filter_.matcher()
        self._is_cloudevents = is_cloudevents
        self._chunks: dict[int, Chunk] = {}
        self._version = -1

    def chunk(self, after: int) -> Chunk:
        """Return what follows `after`, at most CHUNK_BYTES (but always one frame).

        The caller has made sure that `window.holds(after)` and that there is something after it.
        """
        if self._version != self._window.version:
            self._chunks.clear()
            self._version = self._window.version
        chunk = self._chunks.get(after)
        if chunk is None:
            chunk = self.join(self._window.frames_after(after))
            self._window.make_room(len(chunk.data))
            self._chunks[after] = chunk
        return chunk

    def forget(self) -> None:
        """Let go of the joined chunks; whoever needs one joins it anew."""
        self._chunks.clear()

    def join(self, frames: Iterable[Frame], *, scanned_to: int = 0) -> Chunk:
        """Join the matching ones of `frames` until the chunk is full.

        `scanned_to` is where a reader stands if all of them fit, when that is past the last.
        """
        blocks: list[bytes] = []
        received: list[float] = []
        size, position = 0, scanned_to
        positions: list[int] = []
        link = None
        for frame in frames:
            if size >= CHUNK_BYTES:
                break
            position, link = frame.event.position, frame.event.link
            if self._matches is not None and not self._matches(frame.event):
                continue
            block = frame.cloudevent if self._is_cloudevents else frame.sse
            blocks.append(block)
            received.append(frame.received_s)
            size += len(block)
            positions.append(position)
        else:
            if position < scanned_to:
                position, link = scanned_to, None
        data = b"".join(blocks)
        return Chunk(data, position, tuple(positions), Receipts.of(received), link)


class Window:
    """The array of the newest frames. `position` is the newest; -1 until `start`."""

    def __init__(self, *, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._frames: list[Frame] = []
        self._bytes = 0
        self._base = 0
        self._waiters: set[Waiter] = set()
        self._views: WeakValueDictionary[tuple[Filter, bool], View] = WeakValueDictionary()
        self._kept_bytes = 0
        self.position = -1
        self.link = b""
        self.version = 0
        self.is_closing = False

    def start(self, position: int, link: bytes) -> None:
        """Begin empty, just after `position`; forget whatever was there."""
        self._frames, self._bytes = [], 0
        self._base = position + 1
        self.position, self.link = position, link
        self._changed()

    def append(self, frames: list[Frame]) -> None:
        """Take `frames` (oldest first, dense from `position` + 1) and wake those who wait.

        Raises ValueError on a hole: the array's rule would be broken.
        """
        if frames and frames[0].event.position != self.position + 1:
            raise ValueError(f"{frames[0].event.position} does not follow {self.position}")
        self._frames += frames
        self._bytes += sum(frame.size for frame in frames)
        self.position, self.link = frames[-1].event.position, frames[-1].event.link
        self._trim()
        self._changed()

    @property
    def first(self) -> int:
        """The oldest position in it, or that which will be."""
        return self._base

    def replace(self, frames: list[Frame]) -> None:
        """Put `frames` in place of those of the same positions, where it still has them."""
        for frame in frames:
            index = frame.event.position - self._base
            if 0 <= index < len(self._frames):
                self._bytes += frame.size - self._frames[index].size
                self._frames[index] = frame
        self._changed()  # chunks that were joined are forgotten

    def holds(self, after: int) -> bool:
        """True if whoever has read up to `after` can go on from the window, not from the log."""
        return self._base - 1 <= after <= self.position

    def link_at(self, position: int) -> bytes | None:
        """Return the link at `position`, or None if the window does not hold it."""
        if position == self.position:
            return self.link
        if self._base <= position < self.position:
            return self._frames[position - self._base].event.link
        return None

    def frames_after(self, after: int) -> Iterable[Frame]:
        """Yield the frames after `after`, oldest first."""
        for index in range(after + 1 - self._base, len(self._frames)):
            yield self._frames[index]

    def view(self, filter_: Filter, *, is_cloudevents: bool) -> View:
        """Return the view that all who ask for the same share, for as long as one of them does."""
        view = self._views.get((filter_, is_cloudevents))
        if view is None:
            view = View(self, filter_, is_cloudevents)
            self._views[filter_, is_cloudevents] = view
        return view

    def make_room(self, size: int) -> None:
        """Count `size` bytes of a chunk about to be kept; past KEPT_BYTES forget all the others."""
        self._kept_bytes += size
        if self._kept_bytes > KEPT_BYTES:
            for view in self._views.values():
                view.forget()
            self._kept_bytes = size

    def add_waiter(self, waiter: Waiter) -> None:
        """Call `waiter.wake()` once, at the next append or start."""
        self._waiters.add(waiter)

    def remove_waiter(self, waiter: Waiter) -> None:
        """Forget `waiter`, if it still waits."""
        self._waiters.discard(waiter)

    def close(self) -> None:
        """Wake those who wait: nothing more is worth waiting for in this process."""
        self.is_closing = True
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            waiter.wake()

    def _trim(self) -> None:
        slack = 1 + 1 / TRIM_SLACK
        if len(self._frames) <= self._max_events * slack and self._bytes <= self._max_bytes * slack:
            return
        drop = max(0, len(self._frames) - self._max_events)
        dropped = sum(frame.size for frame in self._frames[:drop])
        while self._bytes - dropped > self._max_bytes and drop < len(self._frames) - 1:
            dropped += self._frames[drop].size
            drop += 1
        del self._frames[:drop]
        self._bytes -= dropped
        self._base += drop
