"""Results of deliveries: each is written down in the end, whatever the database does meanwhile."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import asyncpg
import pytest

from service import recorder as recorder_module
from service import supervise
from service.delivery import Deliveries, Ended
from service.errors import LogUnavailable
from service.metrics import Metrics
from service.recorder import Recorder
from service.supervise import Supervisor
from tests.running import WITHIN_S, eventually


class Desk:
    """Takes results down; fails as it is told to, once for each error."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.written: list[int] = []

    async def record(self, ended: Sequence[Ended], **_options: float) -> list[tuple[int, str]]:
        await asyncio.sleep(0)
        if self._errors:
            raise self._errors.pop()
        self.written += [one.position for one in ended]
        return []


def result(position: int) -> Ended:
    now = datetime.now(UTC)
    return Ended(1, position, 1, 1, "delivered", 1, None, now, 1, 200, None, b"", None, None)


@pytest.mark.parametrize(
    "error", [LogUnavailable("away"), asyncpg.InvalidPasswordError("it was changed")]
)
async def test_a_result_is_written_although_the_first_try_fails_and_no_other_comes(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.01)
    monkeypatch.setattr(supervise, "BACKOFF_S", (0.01,))
    desk, settled = Desk(error), set[int]()
    recorder = Recorder(
        cast(Deliveries, desk),
        Metrics(),
        disable_after_s=60,
        on_settled=lambda ids, _: settled.update(ids),
    )
    async with Supervisor(lambda _: None) as supervisor:
        supervisor.start("recorder", recorder.run)
        for position in range(1, 4):
            recorder.begin(1)
            recorder.end(result(position))
        await eventually(lambda: desk.written == [1, 2, 3])
        await recorder.flushed(WITHIN_S)
    assert (settled, recorder.in_flight.total()) == ({1}, 0)
