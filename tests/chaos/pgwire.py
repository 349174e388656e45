"""As much of Postgres' protocol (version 3) as a proxy needs to see what is asked and answered.

Pure: bytes in, whole messages out. Knows which statement a request runs (prepared ones by their
name) and when an answer is complete. Encryption is the proxy's to refuse: nothing could be seen.
"""

import asyncio
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

_ENCRYPTION = {80877103: "SSLRequest", 80877104: "GSSENCRequest"}
_HEADER_BYTES = 5


@dataclass(slots=True)
class Cut:
    """Where a connection will be cut, once: at the first statement with `text` in it.

    Before the server has got it (`is_early`); or after `passed_bytes` of its answer were passed on
    (the first answer that is longer); or (None) when the whole answer is here, so that it is
    committed, and nothing was passed on.
    `is_silent`: the connection then becomes half-open instead of being reset.
    """

    text: str
    passed_bytes: int | None = None
    is_early: bool = False
    is_silent: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


class _Messages:
    """Cuts a stream into messages: a type, a length that counts itself, and a content."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while len(self._buffer) >= _HEADER_BYTES:
            end = 1 + struct.unpack_from("!I", self._buffer, 1)[0]
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[:end])
            del self._buffer[:end]
            yield message


class Requests:
    """What one client says. `said` holds the statements that it has prepared or run."""

    def __init__(self) -> None:
        self.said: set[str] = set()
        self._opening = bytearray()
        self._is_open = False
        self._messages = _Messages()
        self._prepared: dict[bytes, str] = {}
        self._running = ""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, str | None]]:
        """Give each whole message, and the statement that it lets the server run to its end.

        An empty message stands for a wish for encryption, to be answered with `N`.
        """
        if not self._is_open:
            self._opening += data
            while not self._is_open:
                if len(self._opening) < 8:
                    return
                length, code = struct.unpack_from("!II", self._opening)
                if len(self._opening) < length:
                    return
                message = bytes(self._opening[:length])
                del self._opening[:length]
                self._is_open = code not in _ENCRYPTION
                yield (message if self._is_open else b""), None
            data = bytes(self._opening)
        for message in self._messages.feed(data):
            yield message, self._read(message)

    def _read(self, message: bytes) -> str | None:
        kind, content = message[:1], message[_HEADER_BYTES:]
        if kind == b"P":  # Parse: a name, a statement
            name, text = content.split(b"\0")[:2]
            self._prepared[name] = text.decode()
            self.said.add(self._prepared[name])
        elif kind == b"B":  # Bind: a portal, a name
            self._running = self._prepared.get(content.split(b"\0")[1], "")
        elif kind == b"Q":  # simple query
            asked = content.rstrip(b"\0").decode()
            self.said.add(asked)
            return asked
        elif kind == b"S":  # Sync: the end of an implicit transaction
            running, self._running = self._running, ""
            return running or None
        return None


class Answers:
    """What one server says."""

    def __init__(self) -> None:
        self._messages = _Messages()

    def is_complete(self, data: bytes) -> bool:
        """Take `data`; True if it brought ReadyForQuery: what was asked is committed or failed."""
        return b"Z" in [message[:1] for message in self._messages.feed(data)]
