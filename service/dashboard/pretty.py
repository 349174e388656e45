"""JSON laid out for reading: the same tokens in the same spelling, on indented lines. Pure.

The text is never parsed into values and printed again: money keeps each of its digits, a string its
escapes. Bounded, because a body may be built to grow: what is left out is said.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINES_MAX = 2000
INDENT = "  "
DEPTH_MAX = 32  # deeper lines are not indented further
HEX_BYTES = 16
HEX_MAX = 4096

_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?[0-9][0-9.eE+\-]*)'
    r"|(?P<word>true|false|null)|(?P<mark>[{}\[\],:])"
)

Piece = tuple[str, str]  # (kind, text): key, string, number, word, mark, or space
Line = list[Piece]


@dataclass(frozen=True, slots=True)
class Layout:
    """Lines to show; `is_cut` if there are more."""

    lines: list[Line]
    is_cut: bool


def lay_out(text: str) -> Layout:
    """Return a JSON text's lines. Each object's member and each array's element has its own."""
    lines: list[Line] = []
    for line in _lines(text):
        if len(lines) == LINES_MAX:
            return Layout(lines, is_cut=True)
        lines.append(line)
    return Layout(lines, is_cut=False)


def _lines(text: str) -> Iterator[Line]:
    tokens = [(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(text)]
    line: Line = []
    depth = 0
    for n, (kind, token) in enumerate(tokens):
        mark = token if kind == "mark" else ""
        following = tokens[n + 1] if n + 1 < len(tokens) else ("", "")
        if mark and mark in "}]":
            depth -= 1
            if n and tokens[n - 1][1] not in ("{", "["):  # an empty one stays on its line
                yield line
                line = _indent(depth)
        if kind == "string" and following == ("mark", ":"):
            kind = "key"
        line.append((kind, ": " if mark == ":" else token))
        if mark and mark in "{[":
            depth += 1
        is_empty = bool(mark) and mark in "{[" and following in (("mark", "}"), ("mark", "]"))
        if mark and mark in "{[," and not is_empty:
            yield line
            line = _indent(depth)
    if line:
        yield line


def _indent(depth: int) -> Line:
    return [("space", INDENT * min(depth, DEPTH_MAX))] if depth > 0 else []


def hex_dump(body: bytes) -> list[tuple[str, str, str]]:
    """Return lines of offset, bytes in hex, and their ASCII characters: the first HEX_MAX bytes."""
    rows = []
    for offset in range(0, min(len(body), HEX_MAX), HEX_BYTES):
        piece = body[offset : offset + HEX_BYTES]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        rows.append((f"{offset:06x}", piece.hex(" "), shown))
    return rows
