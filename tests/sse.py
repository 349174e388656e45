"""A parser of event streams, by the letter of the HTML standard (9.2.5 and 9.2.6).

Written from the standard and from nothing of ours, so that it can judge our bytes: line ends LF, CR
and CRLF (also split between two chunks), a leading BOM, comments, `id` with a NUL ignored, `retry`
of digits only, a block without data dispatches nothing but moves the last event id.
"""

import codecs
import re
from dataclasses import dataclass

_LINE_END = re.compile("\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Message:
    """An event that an EventSource would dispatch."""

    type: str
    data: str
    last_event_id: str


class Parser:
    """`feed` it the stream's bytes as they come; it returns what each chunk dispatches."""

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self.comments: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._is_start = True
        self._id = ""
        self._type = ""
        self._data = ""

    def feed(self, chunk: bytes) -> list[Message]:
        """Take the next bytes of the stream; return the messages that they complete."""
        self._text += self._decoder.decode(chunk)
        if self._is_start and self._text:
            self._text = self._text.removeprefix("\ufeff")
            self._is_start = False
        messages: list[Message] = []
        while (line := self._take_line()) is not None:
            if line:
                self._field(line)
            elif (message := self._dispatch()) is not None:
                messages.append(message)
        return messages

    def _take_line(self) -> str | None:
        end = _LINE_END.search(self._text)
        # A CR at the very end may be the first half of a CRLF: wait for what follows.
        if end is None or (end[0] == "\r" and end.end() == len(self._text)):
            return None
        line, self._text = self._text[: end.start()], self._text[end.end() :]
        return line

    def _field(self, line: str) -> None:
        if line.startswith(":"):
            self.comments.append(line[1:])
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> Message | None:
        self.last_event_id = self._id
        type_, data = self._type, self._data
        self._type, self._data = "", ""
        if not data:
            return None
        return Message(type_ or "message", data.removesuffix("\n"), self.last_event_id)


def parse(stream: bytes) -> list[Message]:
    """Return all messages of a whole stream."""
    return Parser().feed(stream)
