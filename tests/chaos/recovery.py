"""How long it took until all was as before, after a fault was healed. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.history import Answer, History, Sent, Shard, Subscriber


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds after the heal; None: not yet. `gap_s`: the longest time without a 200 around it."""

    taken_s: float | None
    replicas_s: float | None
    streams_s: float | None
    consumers_s: float | None
    gap_s: float

    @property
    def is_complete(self) -> bool:
        """True if all of it is as before."""
        return None not in (self.taken_s, self.replicas_s, self.streams_s, self.consumers_s)


def recovery(
    history: History, replicas: int, began_at: float, healed_at: float, now: float
) -> Recovery:
    """Return the recovery from a fault.

    Bridge's is the first 200 for a new event to a call that began after the heal; and that of the
    replica that was last to answer 200. A subscriber's is the moment at which it is past that
    event; a slow one has all the time it wants. A consumer's: each shard has handled a later one.
    """
    taken = _taken_after(history.sent, healed_at)
    before = max(
        (it.position or 0 for it in _accepted(history.sent) if it.at < healed_at), default=0
    )
    first = min((it for it in taken if (it.position or 0) > before), key=_moment, default=None)
    answered = (
        min((_moment(it) for it in taken if it.replica == n), default=None) for n in range(replicas)
    )
    streams = consumers = None
    if first is not None and first.position is not None:
        position, at = first.position, first.at
        readers = (_reached(it, position) for it in history.subscribers if not it.is_slow)
        streams = _latest(readers, healed_at)
        consumers = _latest((_worked(shard, at) for shard in history.shards), healed_at)
    taken_s = None if first is None else first.at - healed_at
    gap_s = longest_gap(taken_moments(history.sent, began_at), began_at, now)
    return Recovery(taken_s, _latest(answered, healed_at), streams, consumers, gap_s)


def _accepted(sent: Sequence[Sent]) -> Iterator[Answer]:
    return (answer for event in sent for answer in event.accepted)


def _moment(answer: Answer) -> float:
    return answer.at


def _first(answers: Iterable[Answer]) -> float | None:
    return min(map(_moment, answers), default=None)


def _taken_after(sent: Sequence[Sent], after: float) -> list[Answer]:
    """Return the 200s to calls that began after a moment."""
    return [answer for answer in _accepted(sent) if answer.began_at >= after]


def taken_moments(sent: Sequence[Sent], after: float) -> list[float]:
    """Return the moments of all 200s after `after`, in order."""
    return sorted(answer.at for answer in _accepted(sent) if answer.at >= after)


def longest_gap(moments: Sequence[float], began_at: float, ended_at: float) -> float:
    """Return the longest time without one of `moments` between the two ends."""
    within = [began_at, *(it for it in moments if began_at <= it <= ended_at), ended_at]
    return max(later - earlier for earlier, later in pairwise(within))


def _reached(subscriber: Subscriber, position: int) -> float | None:
    """Return when a subscriber got the first event at or after a position."""
    index = bisect_left(subscriber.seen, position, key=lambda seen: seen.position)
    return subscriber.seen[index].at if index < len(subscriber.seen) else None


def _worked(shard: Shard, after: float) -> float | None:
    """Return when a shard handled the first event after a moment."""
    index = bisect_left(shard.handled, after, key=lambda handled: handled.at)
    return shard.handled[index].at if index < len(shard.handled) else None


def _latest(moments: Iterator[float | None], healed_at: float) -> float | None:
    """Return the seconds from the heal to the latest moment; None if one of them is missing."""
    latest = 0.0
    for moment in moments:
        if moment is None:
            return None
        latest = max(latest, moment - healed_at)
    return latest
