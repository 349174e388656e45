"""An event's way through the service, measured from outside: answered, received, delivered.

Pure: the sender's answers and the reader's events come in, in any order, and joined journeys go
out. Times are Unix seconds of one machine's clock.
"""

from collections.abc import Callable
from dataclasses import dataclass

from service.client import Event
from service.latencies import Latencies
from service.simulate import Answer
from service.terminal import duration, printable


@dataclass(frozen=True, slots=True)
class Journey:
    """An event's way in seconds: sent → answered 200, received → delivered, sent → delivered.

    What was sent by someone else has only the second.
    """

    event: Event
    commit_s: float | None
    deliver_s: float
    total_s: float | None


class Journeys:
    """Joins the answers to the sender with the deliveries to the reader, whichever comes first."""

    def __init__(self, on_journey: Callable[[Journey], None]) -> None:
        self.stages = {stage: Latencies() for stage in ("commit", "deliver", "total")}
        self.count = 0
        self._answers: dict[int, Answer] = {}
        self._deliveries: dict[int, tuple[Event, float]] = {}
        self._on_journey = on_journey

    @property
    def undelivered(self) -> int:
        """How many events were answered 200 and have not reached the reader yet."""
        return len(self._answers)

    def answered(self, answer: Answer) -> None:
        """Note an answer; one without a new position is nobody's journey."""
        if answer.position is None or answer.is_duplicate:
            return
        self._answers[answer.position] = answer
        if answer.position in self._deliveries:
            self._finish(answer.position)

    def delivered(self, event: Event, now: float) -> None:
        """Note an event that arrived at `now` (Unix seconds)."""
        self._deliveries[event.position] = (event, now)
        if event.position in self._answers:
            self._finish(event.position)

    def finish_outside(self, position: int) -> None:
        """Show an event that came without an answer to us, unless it is done."""
        if position in self._deliveries:
            self._finish(position)

    def finish_rest(self) -> None:
        """Show all that came without an answer to us: the end is near."""
        for position in list(self._deliveries):
            self._finish(position)

    def _finish(self, position: int) -> None:
        event, arrived_at = self._deliveries.pop(position)
        answer = self._answers.pop(position, None)
        journey = Journey(
            event=event,
            commit_s=None if answer is None else answer.answered_at - answer.sent_at,
            deliver_s=arrived_at - event.received_at.timestamp(),
            total_s=None if answer is None else arrived_at - answer.sent_at,
        )
        times = (journey.commit_s, journey.deliver_s, journey.total_s)
        for latencies, seconds in zip(self.stages.values(), times, strict=True):
            if seconds is not None:
                latencies.add(seconds)
        self.count += 1
        self._on_journey(journey)


def journey_line(journey: Journey) -> str:
    """Return an event and the times of its stages as one line."""
    event = journey.event
    times = (journey.commit_s, journey.deliver_s, journey.total_s)
    commit, deliver, total = (duration(seconds) for seconds in times)
    return f"{event.position:>7}  {printable(event.type):<28} {commit:>9} {deliver:>9} {total:>9}"
