"""The dashboard's pure parts: JSON laid out, percentiles, figures, alarms, words, codes."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import payloads
from service.alarms import LAG_EVENTS, Situation, find_alarms
from service.auth import StoredToken
from service.buckets import between, percentile
from service.consumer import Consumer, Shard
from service.dashboard.pretty import DEPTH_MAX, HEX_MAX, INDENT, LINES_MAX, hex_dump, lay_out
from service.filter import EVERYTHING
from service.item_status import BROKEN, GOOD, UNKNOWN, WAITING, meaning, status_of
from service.metrics import Metrics
from service.sample import FIGURES, figures, read
from service.words import count, number, size, span

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def text_of(lines: list[list[tuple[str, str]]]) -> str:
    return "\n".join("".join(text for _, text in line) for line in lines)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False, width=32),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(JSON)
def test_a_layout_is_the_same_json(value: Any) -> None:
    text = json.dumps(value)
    assert json.loads(text_of(lay_out(text).lines)) == json.loads(text)


@given(JSON.filter(lambda value: isinstance(value, dict | list)))
def test_a_layout_is_as_the_standard_library_would_lay_it_out(value: Any) -> None:
    expected = json.dumps(value, indent=2)
    deep = any(line.startswith(INDENT * DEPTH_MAX + " ") for line in expected.splitlines())
    if not deep:
        assert text_of(lay_out(json.dumps(value)).lines) == expected


def test_a_layout_keeps_each_digit_and_each_escape() -> None:
    text = '{"a":90071992547409931.070,"b":1e3,"c":"\\u20ac\\/\\"","d":-0.0}'
    shown = text_of(lay_out(text).lines)
    for token in ("90071992547409931.070", "1e3", '"\\u20ac\\/\\""', "-0.0"):
        assert token in shown
    for _, body in islice(payloads.events(seed=2), 300):
        assert orjson.loads(text_of(lay_out(body.decode()).lines)) == orjson.loads(body)


def test_a_layout_is_bounded_whatever_was_sent() -> None:
    wide = lay_out("[" + ",".join(["1"] * 100_000) + "]")
    assert wide.is_cut
    assert len(wide.lines) == LINES_MAX
    deep = lay_out("[" * 1000 + "]" * 1000)
    assert max(len(text_of([line])) for line in deep.lines) <= DEPTH_MAX * len(INDENT) + 2
    assert len(hex_dump(b"x" * 100_000)) == HEX_MAX // 16


def test_bytes_are_dumped_with_their_offsets() -> None:
    assert hex_dump(b'{"a":"\xe2\x82\xac"}')[0] == (
        "000000",
        "7b 22 61 22 3a 22 e2 82 ac 22 7d",
        '{"a":"..."}',
    )


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, None), (50, 1.0), (75, 1.5), (99, 1.98), (100, 2.0)]
)
def test_a_percentile_lies_within_its_bucket(percent: float, expected: float | None) -> None:
    buckets = ((1.0, 10.0), (2.0, 20.0), (float("inf"), 20.0))
    if expected is not None:
        assert percentile(buckets, percent) == pytest.approx(expected)


def test_what_lies_above_all_bounds_counts_as_the_last() -> None:
    assert percentile(((1.0, 0.0), (2.0, 0.0), (float("inf"), 5.0)), 50) == 2.0
    assert percentile(((1.0, 0.0), (float("inf"), 0.0)), 50) is None
    assert percentile((), 50) is None


def test_only_what_came_between_two_readings_counts() -> None:
    older = ((1.0, 100.0), (float("inf"), 100.0))
    newer = ((1.0, 100.0), (float("inf"), 110.0))
    assert between(older, newer) == ((1.0, 0.0), (float("inf"), 10.0))


def test_two_samples_make_every_figure() -> None:
    metrics = Metrics()
    metrics.webhooks_received.labels("default", "accepted").inc(5)
    older = read(metrics, 100.0, 10, None)
    metrics.webhooks_received.labels("default", "duplicate").inc(20)
    metrics.webhooks_received.labels("default", "bad_signature").inc(10)
    metrics.stream_events.inc(40)
    metrics.append_batch.observe(30)
    metrics.append_batch.observe(10)
    metrics.source_delay.observe(0.3)
    metrics.consumer_lag_events.labels("a").set(7)
    metrics.consumer_lag_events.labels("b").set(9)
    made = figures(older, read(metrics, 110.0, 60, 1e6))
    assert made.keys() == FIGURES.keys()
    assert made["events_per_s"] == 5.0
    assert made["duplicates_per_s"] == 2.0
    assert made["signature_failures_per_s"] == 1.0
    assert made["streamed_per_s"] == 4.0
    assert made["append_batch_events"] == 20.0
    assert made["consumer_lag_events"] == 9.0
    assert made["database_bytes"] == 1e6
    assert 0.25 <= (made["source_delay_p50_s"] or 0) <= 0.5
    assert made["delivery_p99_s"] is None  # nothing was delivered: a gap, not a zero


def situation(**changes: Any) -> Situation:
    """Return one in which nothing is wrong, but for `changes`."""
    fine = Situation(
        now=NOW,
        checks={"loops": None, "database": None},
        is_damaged=False,
        last_events={"default": NOW - timedelta(minutes=1)},
        is_log_read=True,
        consumers=(),
        tokens=(),
        lately=None,
        delivery_p99_s=0.02,
    )
    return replace(fine, **changes)


def consumer(lag: int, seconds: float, holder: str | None = None) -> Consumer:
    moment = None if holder is None else NOW
    shard = Shard(0, 10, b"", 10, holder, moment, moment, lag, seconds)
    return Consumer("billing", "explicit", 30, EVERYTHING, NOW, (shard,))


def token(left: timedelta | None, *, is_revoked: bool = False) -> StoredToken:
    revoked_at = NOW if is_revoked else None
    expires_at = None if left is None else NOW + left
    return StoredToken(1, "billing", "stream", EVERYTHING, NOW, expires_at, revoked_at, None)


def calls(outcome: str, source: str = "default") -> tuple[Any, Any]:
    metrics = Metrics()
    metrics.webhooks_received.labels(source, outcome)
    older = read(metrics, 0.0, 1, None)
    metrics.webhooks_received.labels(source, outcome).inc(3)
    return older, read(metrics, 300.0, 1, None)


WRONG: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"is_damaged": True}, "critical", "the log has a hole"),
    ({"checks": {"database": "no answer for 9 s"}}, "critical", "database: no answer for 9 s"),
    ({"delivery_p99_s": 2.5}, "warning", "took more than 2.5 s"),
    (
        {"last_events": {"default": NOW - timedelta(hours=3, minutes=1)}},
        "warning",
        "source default: no event for 3 h",
    ),
    ({"last_events": {"acme": None}}, "note", "source acme: no event yet"),
    ({"consumers": (consumer(LAG_EVENTS + 1, 2.0),)}, "warning", "1,001 events behind"),
    ({"consumers": (consumer(3, 301.0),)}, "warning", "nobody holds it"),
    ({"consumers": (consumer(3, 301.0, "a/b"),)}, "warning", "it is held"),
    ({"tokens": (token(timedelta(days=2)),)}, "note", "token billing expires in 2 d"),
    ({"lately": calls("bad_signature")}, "warning", "default: 3 calls with a bad signature"),
    ({"lately": calls("log_unavailable")}, "critical", "3 calls could not be committed"),
    ({"lately": calls("overloaded")}, "critical", "3 calls could not be committed"),
    ({"lately": calls("unknown_source", "-")}, "warning", "a source that does not exist"),
    ({"lately": calls("address_not_allowed")}, "warning", "addresses that are not allowed"),
)


@pytest.mark.parametrize(("changes", "level", "said"), WRONG)
def test_each_thing_that_is_wrong_is_said(changes: dict[str, Any], level: str, said: str) -> None:
    [alarm] = find_alarms(situation(**changes))
    assert alarm.level == level
    assert said in alarm.text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"last_events": {"default": NOW - timedelta(hours=2, minutes=59)}},
        {"last_events": {"default": None}, "is_log_read": False},
        {"consumers": (consumer(LAG_EVENTS, 299.0),)},
        {"tokens": (token(timedelta(days=8)), token(None), token(timedelta(days=-1)))},
        {"tokens": (token(timedelta(days=2), is_revoked=True),)},
        {"lately": calls("accepted")},
        {"lately": calls("duplicate")},
        {"delivery_p99_s": None},
    ],
)
def test_what_is_not_wrong_is_not_said(changes: dict[str, Any]) -> None:
    assert find_alarms(situation(**changes)) == []


def test_the_worst_is_said_first() -> None:
    all_wrong = {name: value for changes, _, _ in WRONG for name, value in changes.items()}
    levels = [alarm.level for alarm in find_alarms(situation(**all_wrong))]
    assert levels == sorted(levels, key=["critical", "warning", "note"].index)
    assert set(levels) == {"critical", "warning", "note"}


@pytest.mark.parametrize(
    ("code", "level"),
    [(0, GOOD), (-2, WAITING), (402, BROKEN), (1010, BROKEN), (1007, WAITING)]
    + [(code, UNKNOWN) for code in (4711, None, "402", True, 1.5)],
)
def test_a_status_code_has_its_meaning(code: object, level: str) -> None:
    assert meaning(code).level == level


@pytest.mark.parametrize("content", [b"[1]", b"null", b"{}", b"7"])
def test_a_body_may_have_no_status(content: bytes) -> None:
    assert status_of(b'{"content":' + content + b"}") == (None, None)
    assert status_of(b"{}") == (None, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        *((span(s), w) for s, w in ((0.0042, "4.2 ms"), (0.5, "500 ms"), (3.21, "3.2 s"))),
        *((span(s), w) for s, w in ((59, "59 s"), (60, "1 min"), (90, "1 min 30 s"))),
        *((span(s), w) for s, w in ((10800, "3 h"), (187200, "2 d 4 h"), (8.64e6, "100 d"))),
        (number(12345), "12,345"),
        (number(1.25), "1.2"),
        *((size(b), w) for b, w in ((0, "0 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"))),
        (count(1, "event"), "1 event"),
        (count(2000, "event"), "2,000 events"),
    ],
)
def test_numbers_are_said_in_words(words: str, expected: str) -> None:
    assert words == expected


def test_words_never_fail() -> None:
    spellers: tuple[Callable[[float], str], ...] = (span, number, size)
    for value in (0, 0.0, 1e-9, 0.9999, 9.9999, 59.999, 3599.9, 1e15):
        assert all(speller(value) for speller in spellers)
