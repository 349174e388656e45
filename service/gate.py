"""The connection that asks the intake: a webhook that is one too many gets its 503 without a task.

Only a call that is here as a whole is refused so; one whose body is still to come goes the usual
way, and is refused by its endpoint. In overload what is received may wait for a later turn.
"""

from typing import Any

from service.intake import Headers, Intake
from service.protocol import Bounds, Protocol
from service.refusal import Refusal, Refused


class Gate(Protocol):
    """`Protocol`, and what it holds back of a call to be refused: its headers, its body so far."""

    def __init__(self, intake: Intake, bounds: Bounds, **of_uvicorn: Any) -> None:
        super().__init__(bounds, **of_uvicorn)
        self._intake = intake
        self._held: tuple[Headers, list[bytes]] | None = None
        self._put_off: list[bytes] = []  # received, and not looked at

    def data_received(self, data: bytes) -> None:
        if not self._put_off and self._intake.may_read():
            self._read(data)
            return
        if self._put_off:
            self.flow.pause_reading()  # as much as that is enough until it is looked at
        else:
            self._intake.put_off(self._read_on)
        self._put_off.append(data)

    def shutdown(self) -> None:
        """Answer what was received; then as ever."""
        self._read_on()
        super().shutdown()

    def _read_on(self) -> None:
        pieces, self._put_off = self._put_off, []
        if len(pieces) > 1 and not self.transport.is_closing():
            self.flow.resume_reading()  # first: what is read now may pause it again
        for piece in pieces:
            if not self.transport.is_closing():
                self._read(piece)

    def _read(self, data: bytes) -> None:
        super().data_received(data)
        try:
            self._let_go()
        except Refused as error:
            self._refuse(error.refusal)

    def _begin(self) -> None:
        if self._intake.is_open(self.url) or not self._is_plain():
            super()._begin()
        else:
            self._held = self.headers, []
            self.headers = []  # trailers are none of them

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held[1].append(body)

    def on_message_complete(self) -> None:
        if self._held is not None:
            defaults = self.server_state.default_headers
            peer = self.client[0] if self.client else None
            answer = self._intake.refusal(self.url, self._held[0], defaults, peer)
            if answer is not None:
                self._held = None
                self._has_head = False
                self.transport.write(answer)
                self.on_response_complete()
                return
            self._let_go()
        super().on_message_complete()

    def _refuse(self, refusal: Refusal) -> None:
        if self._held is not None:  # nobody has heard of that call
            self._held, self._has_head = None, False
        super()._refuse(refusal)

    def _let_go(self) -> None:
        """Give what was held back to the application after all. Raises Refused for a bad target."""
        if self._held is None:
            return
        headers, pieces = self._held
        self.headers = list(headers)
        super()._begin()
        self._held = None
        for piece in pieces:
            super().on_body(piece)

    def _is_plain(self) -> bool:
        """True if the call can be answered at once: nothing is before it, the client reads."""
        return (
            self._is_idle
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )
