"""Writes server-sent events to one client, and knows since when a write has been hanging."""

from collections.abc import Callable

from starlette.types import Send

from service.event import control_block
from service.hub import Subscriber

Clock = Callable[[], float]
HEARTBEAT = b":\n\n"


class Writer:
    """The way to one subscriber's socket."""

    __slots__ = ("_clock", "_has_control", "_send", "_subscriber", "_write_now")

    def __init__(
        self,
        send: Send,
        write_now: Callable[[bytes], bool],
        subscriber: Subscriber,
        clock: Clock,
        has_control: bool,
    ) -> None:
        self._send = send
        self._write_now = write_now
        self._subscriber = subscriber
        self._clock = clock
        self._has_control = has_control

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Hand `data` to the socket; waits while the client takes nothing."""
        subscriber = self._subscriber
        subscriber.sending_since = self._clock()
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        subscriber.sending_since = None
        subscriber.sent_at = self._clock()

    def write_now(self, data: bytes) -> bool:
        """Hand `data` to the socket if that needs no wait, else return False."""
        if not self._write_now(data):
            return False
        self._subscriber.sent_at = self._clock()
        return True

    async def control(self, name: str, **values: str | int | None) -> None:
        """Write a control event, if the client asked for them."""
        if self._has_control:
            await self.write(control_block(name, **values))
