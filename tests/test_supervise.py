"""Loops that must not die unseen: restarted, counted, or the end of the process."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from service import supervise, waiting
from service.errors import LogUnavailable
from service.supervise import Supervisor
from tests.running import WITHIN_S, eventually


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "BACKOFF_S", (0.001, 0.002))


async def forever() -> None:
    """Run until cancelled."""
    await asyncio.Event().wait()


def failing(
    times: int, then: Callable[[], None] = lambda: None, error: Exception | None = None
) -> supervise.Loop:
    """Return a loop that fails `times` times, and then calls `then` and runs for ever."""
    left = times

    async def run() -> None:
        nonlocal left
        if left:
            left -= 1
            raise error or RuntimeError("broken")
        then()
        await forever()

    return run


async def test_a_loop_that_fails_is_logged_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fatal: list[str] = []
    healed = asyncio.Event()
    async with Supervisor(fatal.append) as supervisor:
        supervisor.start("tail", failing(5, healed.set))
        await asyncio.wait_for(healed.wait(), WITHIN_S)
        assert supervisor.is_alive()
    errors = [it.__dict__ for it in caplog.records if it.levelno == logging.ERROR]
    assert [(it["loop"], it["failures"]) for it in errors] == [("tail", n) for n in range(1, 6)]
    assert all(it["exc_info"] for it in errors)
    assert fatal == []


async def test_a_loop_that_keeps_failing_ends_the_process() -> None:
    fatal: list[str] = []
    async with Supervisor(fatal.append) as supervisor:
        supervisor.start("steady", forever)
        supervisor.start("appender", failing(3), max_failures=3)
        await eventually(lambda: fatal == ["appender"])
        await eventually(lambda: not supervisor.is_alive())


async def test_fewer_failures_than_the_limit_do_not_end_it() -> None:
    fatal: list[str] = []
    healed = asyncio.Event()
    async with Supervisor(fatal.append) as supervisor:
        supervisor.start("appender", failing(2, healed.set), max_failures=3)
        await asyncio.wait_for(healed.wait(), WITHIN_S)
        assert supervisor.is_alive()
    assert fatal == []


async def test_a_loop_that_returns_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    async def over() -> None:
        return

    fatal: list[str] = []
    async with Supervisor(fatal.append) as supervisor:
        supervisor.start("pulse", over)
        await eventually(lambda: fatal == ["pulse"])
        await eventually(lambda: not supervisor.is_alive())
    assert "loop ended, the process stops" in caplog.text


async def test_a_loop_that_ran_well_for_long_starts_its_back_off_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervise, "HEALTHY_S", -1.0)
    fatal: list[str] = []
    healed = asyncio.Event()
    async with Supervisor(fatal.append) as supervisor:
        supervisor.start("listen", failing(10, healed.set), max_failures=2)
        await asyncio.wait_for(healed.wait(), WITHIN_S)
    assert fatal == []


async def test_a_loop_whose_clean_up_fails_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        try:
            await forever()
        finally:
            raise OSError("the connection is gone")

    monkeypatch.setattr(supervise, "BACKOFF_S", (60.0,))
    monkeypatch.setattr(waiting, "CANCEL_AGAIN_S", 0.05)
    async with asyncio.timeout(WITHIN_S), Supervisor(lambda _: None) as supervisor:
        supervisor.start("listen", run)
        await asyncio.sleep(0)
    assert "tasks go on after their cancellation" in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("broken"), [0.5, 2.0, 3.0, 3.0, 3.0]),
        (LogUnavailable("the database is away"), [0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
async def test_back_off_grows_to_its_last_step_but_not_for_a_database_that_is_away(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: list[float]
) -> None:
    monkeypatch.setattr(supervise, "BACKOFF_S", (0.5, 2.0, 3.0))
    waits: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("service.supervise.asyncio.sleep", record)
    fatal: list[str] = []
    async with Supervisor(fatal.append) as supervisor:
        supervisor.start("tail", failing(6, error=error), max_failures=6)
        while not fatal:
            await sleep(0)
    assert waits == expected


async def test_the_end_of_the_block_cancels_every_loop_and_waits_for_it() -> None:
    cleaned: list[str] = []

    async def careful() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            cleaned.append("done")

    fatal: list[str] = []
    async with Supervisor(fatal.append) as supervisor:
        supervisor.start("one", careful)
        supervisor.start("two", careful)
        await asyncio.sleep(0)
    assert cleaned == ["done", "done"]
    assert fatal == []


async def test_tasks_carry_the_names_of_their_loops() -> None:
    async with Supervisor(lambda _: None) as supervisor:
        supervisor.start("appender", forever)
        assert "appender" in {task.get_name() for task in asyncio.all_tasks()}
