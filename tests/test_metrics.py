"""Metrics: the delivery histogram against a plain count, and names and labels that stay closed."""

import asyncio
import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.latency import LONG_BUCKETS_S, DeliveryHistogram, Receipts
from service.metrics import CLOSE_REASONS, Metrics

NOW = 1_700_000_000.0
TIMES = st.lists(
    st.floats(NOW - 200_000, NOW + 10).map(lambda it: round(it * 1024) / 1024)
    | st.sampled_from([NOW - bound for bound in (0.5, 1.0, 60.0, 172800.0)]),
    max_size=30,
)


def buckets(histogram: DeliveryHistogram) -> dict[float, float]:
    """Return the cumulative count of each bucket of `stream`."""
    [family] = histogram.collect()
    return {
        float(sample.labels["le"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_bucket") and sample.labels["via"] == "stream"
    }


def value(histogram: DeliveryHistogram, suffix: str) -> float:
    """Return the sum or the count of `stream`."""
    [family] = histogram.collect()
    [found] = [
        sample.value
        for sample in family.samples
        if sample.name.endswith(suffix) and sample.labels["via"] == "stream"
    ]
    return found


@given(st.lists(TIMES.filter(bool), max_size=5))
def test_chunks_are_counted_as_if_one_by_one(chunks: list[list[float]]) -> None:
    histogram = DeliveryHistogram("x_seconds", "x")
    for times in chunks:
        histogram.observe_many("stream", NOW, Receipts.of(times))
    delays = [NOW - time for times in chunks for time in times]
    for bound, count in buckets(histogram).items():
        assert count == sum(delay <= bound for delay in delays), bound
    assert value(histogram, "_count") == len(delays)


@given(TIMES.filter(bool))
def test_the_sum_is_that_of_the_delays(times: list[float]) -> None:
    histogram = DeliveryHistogram("x_seconds", "x")
    histogram.observe_many("stream", NOW, Receipts.of(times))
    expected = max(0.0, sum(NOW - time for time in times))
    assert math.isclose(value(histogram, "_sum"), expected, rel_tol=1e-6, abs_tol=1e-3)


def test_a_clock_that_ran_backwards_counts_as_no_delay() -> None:
    histogram = DeliveryHistogram("x_seconds", "x")
    histogram.observe_many("stream", NOW, Receipts.of([NOW + 5]))
    assert buckets(histogram)[LONG_BUCKETS_S[0]] == 1
    assert value(histogram, "_sum") == 0


def test_the_buckets_rise_from_half_a_millisecond_to_two_days() -> None:
    bounds = list(buckets(DeliveryHistogram("x_seconds", "x")))
    assert bounds == sorted(bounds)
    assert (bounds[0], bounds[-2], bounds[-1]) == (0.0005, 172800.0, math.inf)


@given(TIMES)
def test_receipts_know_their_ends_and_their_sum(times: list[float]) -> None:
    receipts = Receipts.of(times)
    assert receipts.times_s == tuple(times)
    assert receipts.oldest_s == min(times, default=math.inf)
    assert receipts.newest_s == max(times, default=-math.inf)
    assert receipts.total_s == sum(times)


@given(TIMES, st.floats(NOW - 200_000, NOW + 10))
def test_since_keeps_those_at_or_after_a_moment(times: list[float], moment: float) -> None:
    kept = Receipts.of(times).since(moment)
    assert Counter(kept.times_s) == Counter(time for time in times if time >= moment)
    assert kept == Receipts.of(kept.times_s)


def test_since_includes_the_moment_itself() -> None:
    assert Receipts.of([NOW - 1, NOW, NOW + 1]).since(NOW).times_s == (NOW, NOW + 1)


def test_since_gives_itself_back_if_nothing_is_older() -> None:
    receipts = Receipts.of([NOW, NOW + 1])
    assert receipts.since(NOW) is receipts
    assert Receipts.of([]).since(NOW).times_s == ()


def test_the_delivery_histogram_is_valid_text() -> None:
    registry = CollectorRegistry(auto_describe=True)
    histogram = DeliveryHistogram("causeway_delivery_seconds", "From receipt to delivery.")
    registry.register(histogram)
    histogram.observe_many("stream", NOW, Receipts.of([NOW - 0.0007, NOW - 1]))
    [family] = text_string_to_metric_families(generate_latest(registry).decode())
    assert (family.name, family.type) == ("causeway_delivery_seconds", "histogram")
    found = {
        (sample.name.removeprefix(family.name), sample.labels.get("le")): sample.value
        for sample in family.samples
        if sample.labels["via"] == "stream"
    }
    assert found["_bucket", "0.0005"] == 0
    assert found["_bucket", "0.001"] == 1
    assert found["_bucket", "1.0"] == found["_bucket", "+Inf"] == found["_count", None] == 2


def test_one_process_has_one_registry_and_a_test_its_own() -> None:
    first, second = Metrics(), Metrics()
    first.stream_events.inc(3)
    assert second.registry.get_sample_value("causeway_stream_events_total") == 0


async def test_every_metric_of_ours_has_a_help_text_and_a_base_unit() -> None:
    metrics = Metrics()
    metrics.watch_tasks(asyncio.get_running_loop())
    metrics.watch_pool(lambda: 3, lambda: 1)
    families = {
        family.name: family
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        if not family.name.startswith(("process_", "python_"))
    }
    assert len(families) > 12
    for name, family in families.items():
        assert re.fullmatch(r"causeway_[a-z_]+", name), name
        assert family.documentation.endswith("."), name
        assert not name.endswith(("_ms", "_millis", "_created")), name
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_events")), name
    assert metrics.registry.get_sample_value("causeway_pool_connections") == 3
    assert metrics.registry.get_sample_value("causeway_pool_idle_connections") == 1
    assert metrics.registry.get_sample_value("causeway_tasks") == len(asyncio.all_tasks())


@pytest.mark.parametrize("reason", CLOSE_REASONS)
def test_a_reason_for_a_closed_stream_is_there_before_it_happens(reason: str) -> None:
    name = "causeway_stream_closed_total"
    assert Metrics().registry.get_sample_value(name, {"reason": reason}) == 0
