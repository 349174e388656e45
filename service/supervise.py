"""Tasks that must not die unseen: each has a name, is restarted, or ends the process.

A loop that raises is logged, and started again after a back-off. One that keeps failing without a
minute's success, or that returns, calls `on_fatal`: the process stops in order and is restarted by
whoever runs it. `is_alive` is what `/livez` asks.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType

from service.errors import CausewayError, LogUnavailable
from service.waiting import end

log = logging.getLogger("causeway.supervise")

Loop = Callable[[], Awaitable[None]]
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
HEALTHY_S = 60.0  # a loop that ran this long starts its back-off anew
# A database that is away comes back by itself: nobody's events wait for longer than this after it.
AWAY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Policy:
    name: str
    run: Loop
    max_failures: int | None


class Supervisor:
    """Owns the process's long-lived tasks: `async with` it, `start` loops within."""

    def __init__(self, on_fatal: Callable[[str], None]) -> None:
        self._on_fatal = on_fatal
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> "Supervisor":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await end(self._tasks.values())

    def start(self, name: str, run: Loop, *, max_failures: int | None = None) -> None:
        """Run `run()` for ever under `name`.

        After `max_failures` failures in a row (None: any number) the process ends.
        """
        policy = _Policy(name, run, max_failures)
        self._tasks[name] = asyncio.create_task(self._supervise(policy), name=name)

    def is_alive(self) -> bool:
        """True while every loop runs or waits for its restart."""
        return not any(task.done() for task in self._tasks.values())

    async def _supervise(self, policy: _Policy) -> None:
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await policy.run()
                break  # a loop has no reason to return
            except Exception as error:  # noqa: BLE001 - unknown errors end here, and are reported
                failures = 1 if clock() - began > HEALTHY_S else failures + 1
                pause_s = _pause_s(failures, error)
                _report(policy.name, failures, error)
            if policy.max_failures is not None and failures >= policy.max_failures:
                break
            await asyncio.sleep(pause_s)
        log.error("loop ended, the process stops", extra={"loop": policy.name})
        self._on_fatal(policy.name)


def _pause_s(failures: int, error: Exception) -> float:
    pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
    return min(pause_s, AWAY_S) if isinstance(error, LogUnavailable) else pause_s


def _report(name: str, failures: int, error: Exception) -> None:
    """Say that a loop failed: in one line where we know why, with the places where we do not."""
    fields = {"loop": name, "failures": failures, "reason": type(error).__name__}
    if isinstance(error, CausewayError):
        log.warning("loop failed", extra=fields)
    else:
        log.error("loop failed", extra=fields, exc_info=error)
