"""Whatever bytes come, a parser takes them or says in a documented error why not.

The targets are those of tests/fuzz: here hypothesis bends their seeds, the same way each time;
`make fuzz` lets atheris look further. What atheris has found stands in FOUND.
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS

INPUT_S = 10.0  # of a processor that may be slow; what takes the square of its size takes minutes

# What was found once: (target, input).
FOUND: list[tuple[str, bytes]] = [
    ("answers", b"[" * 100_000),
    ("answers", b'1\0{"lease":Infinity,"position":1}\0\0'),
    ("answers", b'1\0{"lease":1,"position":Infinity}\0\0'),
    ("answers", b'1\0{"lease":1,"position":1}\0no id\0'),
    ("answers", b"1\0" + b"[" * 100_000 + b"\0" + b"[" * 100_000 + b"\0" + b"[" * 100_000),
]

PIECES = st.sampled_from(
    [
        *(b"\0", b"\r\n", b"\xff", b"\xed\xa0\x80", b'"', b"{", b"[", b"]", b"}", b",", b":", b"="),
        *(b"&", b"%00", b"%ff", b"-1", b"9" * 20, b"1e999", b"NaN", b"Infinity", b"null", b"true"),
        *("٣".encode(), "\u2028".encode(), b"\\ud800", b"\\u0000", b"[" * 2000, b"1" * 5000),
        *(b"*", b".", b"@", b"#", b"v1=", b"[::1]", b"0001-01-01", b"9999-12-31T23:59:59-23:59"),
    ]
)


@st.composite
def bent(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return a seed with some pieces put in, or taken out, or doubled."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 12)))
        data = data[:at] + draw(PIECES | st.binary(max_size=8)) + data[to:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_taken_or_refused(name: str) -> None:
    @given(st.binary(max_size=200) | bent(SEEDS[name]))
    def feed(data: bytes) -> None:
        began = time.process_time()
        TARGETS[name](data)
        assert time.process_time() - began < INPUT_S

    feed()


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once_is_mended(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_much_of_a_thing_takes_no_more_than_its_size(name: str) -> None:
    for seed in SEEDS[name]:
        for piece in (seed, b"[", b"&a=", b",", b"v1=,", b".", b"a", b'{"a":', b"\0a=b"):
            began = time.process_time()
            TARGETS[name](piece * (256 * 1024 // len(piece)))
            assert time.process_time() - began < INPUT_S, (name, piece)
