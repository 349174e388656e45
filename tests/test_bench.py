"""The benchmarks run, in their tiniest form, and produce their figures. No time is asserted."""

import math
from pathlib import Path

from service.embedded import EmbeddedPostgres
from tests.bench import (
    acks,
    append,
    endtoend,
    fanout,
    feed,
    gateways,
    idle,
    ingest,
    longlog,
    mirror,
    overload,
    soak,
    storm,
    workers,
)
from tests.bench.effort import SMOKE
from tests.bench.figures import (
    Figure,
    Turn,
    alternate,
    at_least,
    at_most,
    figure,
    percentiles,
    ratio,
)
from tests.bench.machine import describe
from tests.bench.report import Section, write
from tests.conftest import need_program
from tests.nats_server import find_server


def check(figures: list[Figure], *names: str) -> None:
    """Assert that all of `names` are among the figures, and that each is a number above 0."""
    by_name = {figure.what: figure for figure in figures}
    assert set(names) <= set(by_name)
    for figure_ in figures:
        assert math.isfinite(figure_.value), figure_
        assert figure_.value > 0, figure_
        assert figure_.low <= figure_.value <= figure_.high


async def test_append_is_measured_in_all_sizes_and_against_pgbench(
    postgres: EmbeddedPostgres,
) -> None:
    figures = await append.measure(postgres, SMOKE)
    sizes = [f"append, batches of {size}" for size in (1, 10, 50, 200, 500)]
    check(figures, *sizes, "batches of 200 to single events", "append to pgbench, batches of 200")


async def test_the_feed_is_measured_in_a_browser(postgres: EmbeddedPostgres) -> None:
    need_program("chromium")
    need_program("chromedriver")
    figures = await feed.measure(postgres, SMOKE)
    check(figures, "rows in the page at the most")


async def test_ingest_is_measured_against_nothing_and_against_a_plain_handler(
    postgres: EmbeddedPostgres,
) -> None:
    need_program("wrk")
    figures = await ingest.measure(postgres, SMOKE)
    check(figures, "service", "service to itself without append", "service to FastAPI + asyncpg")


async def test_gateways_are_measured_over_both_tails(postgres: EmbeddedPostgres) -> None:
    find_server()
    figures = await gateways.measure(postgres, SMOKE)
    check(
        figures,
        *("1 gateways over postgres", "1 gateways over nats"),
        *(f"received to subscriber, over {tail}, p50" for tail in ("postgres", "nats")),
    )


async def test_the_mirror_is_measured_beside_the_disk(postgres: EmbeddedPostgres) -> None:
    find_server()
    figures = await mirror.measure(postgres, SMOKE)
    check(figures, "mirror, three servers, each write synced", "mirror to the disk, one server")


async def test_two_workers_are_measured_against_one(postgres: EmbeddedPostgres) -> None:
    need_program("wrk")
    figures = await workers.measure(postgres, SMOKE)
    check(figures, "one worker", "two workers", "two workers, processor time of a webhook")


async def test_fanout_is_measured_against_sse_starlette(postgres: EmbeddedPostgres) -> None:
    figures = await fanout.measure(postgres, SMOKE)
    check(
        [figure for figure in figures if "memory" not in figure.what],  # ten streams may cost none
        "Causeway, single events",
        "Causeway, bursts of 50",
        "Causeway to sse-starlette, single events",
    )
    assert "Causeway, memory of an idle stream" in {figure.what for figure in figures}


async def test_the_way_of_an_event_is_measured_beside_a_bare_commit(
    postgres: EmbeddedPostgres,
) -> None:
    figures = await endtoend.measure(postgres, SMOKE)
    check(figures, "sent to received by 2 subscribers, p99", "a bare commit, p50")


async def test_a_long_log_is_measured_against_a_short_one(postgres: EmbeddedPostgres) -> None:
    figures = await longlog.measure(postgres, SMOKE)
    names = [f"{what}, long log to short log" for what in ("resume", "since=", "rare item")]
    check(figures, *names, "append, batches of 200, long log to short log")


async def test_a_storm_of_acks_is_measured_with_its_commits(postgres: EmbeddedPostgres) -> None:
    figures = await acks.measure(postgres, SMOKE)
    check(figures, "acknowledgements accepted", "commits meanwhile", "acknowledgements in a commit")


def check_all(figures: list[Figure], *names: str) -> None:
    """Assert as `check` does, where 0 is a good figure: nothing lost, nothing left."""
    assert set(names) <= {figure.what for figure in figures}
    for figure_ in figures:
        assert math.isfinite(figure_.value), figure_
        assert figure_.value >= 0, figure_


async def test_a_soak_is_measured_with_all_that_it_leaves(postgres: EmbeddedPostgres) -> None:
    figures = await soak.measure(postgres, SMOKE)
    check_all(figures, "memory, last third to middle third", "sent to received, p99")
    exact = {"streams with other bytes", "holes in a stream", "streams that ended"}
    exact |= {f"left when all have gone: {what}" for what in ("tasks", "files, sessions aside")}
    found = {figure.what: figure.value for figure in figures if figure.what in exact}
    assert found == dict.fromkeys(exact, 0)


async def test_idle_subscribers_are_measured(postgres: EmbeddedPostgres) -> None:
    figures = await idle.measure(postgres, SMOKE)
    check_all(figures, "20 connected in", "processor, heartbeats alone")


async def test_a_storm_of_resumes_is_measured_in_the_window_and_below_it(
    postgres: EmbeddedPostgres,
) -> None:
    figures = await storm.measure(postgres, SMOKE)
    for place in ("in the window", "below it"):
        check_all(figures, f"{place}: until the last is caught up", f"{place}: more memory")


async def test_overload_is_measured_against_less(postgres: EmbeddedPostgres) -> None:
    figures = await overload.measure(postgres, SMOKE)
    for bound in ("processor", "commits"):
        check_all(figures, f"{bound}: refused in overload", f"{bound}: accepted in overload, p99")


async def test_contenders_take_turns() -> None:
    order = []

    def turn(name: str, value: float) -> Turn:
        async def run(number: int) -> float:
            order.append(f"{name}{number}")
            return value

        return run

    values = await alternate(2, {"a": turn("a", 1.0), "b": turn("b", 2.0)})
    assert order == ["a0", "b0", "a1", "b1"]
    assert values == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_a_ratio_is_the_median_of_each_rounds_ratio() -> None:
    disturbed = ratio("x", [100, 10, 90], [50, 5, 60])  # the second round was slow for both
    assert (disturbed.value, disturbed.low, disturbed.high) == (2.0, 1.5, 2.0)


def test_a_target_is_met_at_its_bound_and_missed_past_it() -> None:
    assert figure("x", "", [20], at_least(20)).is_met is True
    assert figure("x", "", [19.9], at_least(20)).is_met is False
    assert figure("x", "", [16], at_most(16)).is_met is True
    assert figure("x", "", [16.1], at_most(16)).is_met is False
    assert figure("x", "", [1]).is_met is None


def test_percentiles_are_in_milliseconds() -> None:
    p50, p99 = percentiles("x", [n / 1000 for n in range(101)])
    assert (p50.value, p99.value, p99.high) == (50.0, 99.0, 100.0)


async def test_the_result_names_the_machine_and_what_was_missed(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    machine = await describe(postgres)
    assert {"CPU", "memory", "kernel", "Postgres", "disk"} <= set(machine)
    missed = figure("frames", "frames/s", [99_400.0], at_least(100_000))
    write(tmp_path / "result.md", [Section("fanout", "How fast.", [missed])], machine, "quick")
    text = (tmp_path / "result.md").read_text()
    assert f"| CPU | {machine['CPU']} |" in text
    assert "| frames | 99,400 frames/s | (99,400 to 99,400) | ≥ 100,000 | MISSED |" in text


def test_what_is_measured_again_replaces_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "result.md"
    old = [Section(name, f"How {name}.", [figure(name, "x", [1.0])]) for name in ("a", "b", "c")]
    write(path, old, {"CPU": "old"}, "full")
    write(path, [Section("b", "How b.", [figure("b", "x", [2.0])])], {"CPU": "new"}, "quick")
    text = path.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## a",
        "## b",
        "## c",
    ]
    assert [line[:9] for line in text.splitlines() if " x |" in line] == [
        *("| a | 1 x", "| b | 2 x", "| c | 1 x"),
    ]
    assert "| CPU | new |" in text
    assert text.count("quick.") == 1
