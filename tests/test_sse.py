"""The parser of tests, held to the examples of the HTML standard (9.2.6)."""

import pytest

from tests.sse import Message, Parser, parse


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
            b"data:  third event\n",
            [Message("message", "first event", "1"), Message("message", "second event", "")],
            id="comment, an id that is reset, a block that never ends",
        ),
        pytest.param(
            b"data\n\ndata\ndata\n\ndata:",
            [Message("message", "", ""), Message("message", "\n", "")],
            id="empty data is dispatched, no data is not",
        ),
        pytest.param(
            b"data:test\n\ndata: test\n\n",
            [Message("message", "test", "")] * 2,
            id="one space after the colon does not count",
        ),
        pytest.param(
            b"event: add\r\ndata: a\rdata: b\n\r\n",
            [Message("add", "a\nb", "")],
            id="three line ends",
        ),
        pytest.param(
            b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\ndata: \xff\n\n",
            [Message("message", "a", ""), Message("message", "\ufffd", "")],
            id="a byte order mark counts only at the start",
        ),
        pytest.param(
            b"event: left\n\ndata: a\n\n", [Message("message", "a", "")], id="a type is not kept"
        ),
        pytest.param(
            b"id: 1\n\nid: 2\0\ndata: a\n\nID: 3\n\n",
            [Message("message", "a", "1")],
            id="an id alone moves the place, one with NUL does not",
        ),
    ],
)
def test_the_standards_examples(stream: bytes, expected: list[Message]) -> None:
    assert parse(stream) == expected
    parser = Parser()
    one_by_one = [message for byte in stream for message in parser.feed(bytes([byte]))]
    assert one_by_one == expected


def test_an_id_counts_only_once_its_block_has_ended() -> None:
    parser = Parser()
    parser.feed(b"id: 7\n")
    assert parser.last_event_id == ""
    parser.feed(b"\n")
    assert parser.last_event_id == "7"


@pytest.mark.parametrize(
    ("line", "expected"), [("3000", 3000), ("3s", None), ("-1", None), ("", None), ("٣", None)]
)
def test_retry_is_ascii_digits_only(line: str, expected: int | None) -> None:
    parser = Parser()
    assert parser.feed(f"retry: {line}\n\n".encode()) == []
    assert parser.retry_ms == expected


def test_comments_are_kept_apart() -> None:
    parser = Parser()
    assert parser.feed(b": causeway\n:\n\n") == []
    assert parser.comments == [" causeway", ""]
