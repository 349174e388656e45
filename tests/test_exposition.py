"""Metrics of several workers in one text: valid, each family once, each series its worker's."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.exposition import merge
from service.metrics import Metrics

VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def exposed(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = [
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len({(name, labels) for name, labels, _ in found}) == len(found)
    return {(name, labels): value for name, labels, value in found}


@given(st.lists(st.dictionaries(VALUES, st.floats(allow_nan=False), max_size=3), max_size=3))
def test_every_series_is_there_once_with_its_worker(workers: list[dict[str, float]]) -> None:
    texts = {}
    for number, values in enumerate(workers):
        registry = CollectorRegistry()
        gauge = Gauge("x", 'Says "so" {or} not.', ["name"], registry=registry)
        for name, value in values.items():
            gauge.labels(name).set(value)
        texts[number] = exposed(registry)
    assert samples(merge(texts)) == {
        ("x", (("name", name), ("worker", str(number)))): value
        for number, values in enumerate(workers)
        for name, value in values.items()
    }


def test_each_family_stands_once_with_all_its_series() -> None:
    first, second = Metrics(), Metrics()
    first.stream_events.inc(3)
    second.stream_events.inc(4)
    text = merge({0: exposed(first.registry), 1: exposed(second.registry)})
    helps = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(helps) == len(set(helps))
    found = samples(text)
    assert found["causeway_stream_events_total", (("worker", "0"),)] == 3
    assert found["causeway_stream_events_total", (("worker", "1"),)] == 4
    assert len(found) == len(samples(exposed(first.registry))) * 2


def test_a_family_of_one_worker_only_is_kept() -> None:
    registry = CollectorRegistry()
    Counter("late_total", "Only there.", registry=registry).inc()
    text = merge({0: exposed(CollectorRegistry()), 3: exposed(registry)})
    assert samples(text)["late_total", (("worker", "3"),)] == 1
