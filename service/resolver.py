"""Host names to addresses: look-ups that hang delay nobody else.

The operating system's look-up can't be cancelled and may hang for half a minute. Each runs in a
thread of its own, look-ups of one host at a time are one, and their number is bounded: more wait,
within the timeouts of whoever asked. Nothing is kept: every new connection asks again.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence

MAX_THREADS = 64

LookUp = Callable[[str], Sequence[str]]


def look_up(host: str) -> list[str]:
    """Return the addresses of `host`, the best first. Blocks; raises OSError if there are none."""
    # As bytes: Python would put a text through its old IDNA codec, which has limits of its own.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Asks `look_up` in threads. Must be made in a running event loop."""

    def __init__(self, look_up: LookUp = look_up) -> None:
        self._loop = asyncio.get_running_loop()
        self._look_up = look_up
        self._threads = asyncio.Semaphore(MAX_THREADS)
        self._asking: dict[str, asyncio.Task[Sequence[str] | OSError]] = {}

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the addresses of `host`, the best first. Raises OSError if there are none.

        Cancelling stops the wait; the look-up goes on, for others who ask or for nobody.
        """
        asking = self._asking.get(host)
        if asking is None:
            asking = self._loop.create_task(self._ask(host), name="resolver")
            self._asking[host] = asking
            asking.add_done_callback(lambda _: self._asking.pop(host))
        found = await asyncio.shield(asking)
        if isinstance(found, OSError):
            raise found
        return found

    def close(self) -> None:
        """Wait for no look-up any more."""
        for asking in self._asking.values():
            asking.cancel()

    async def _ask(self, host: str) -> Sequence[str] | OSError:
        async with self._threads:
            found: asyncio.Future[Sequence[str] | OSError] = self._loop.create_future()
            # Not an executor: the interpreter's exit would wait for its hanging threads.
            thread = threading.Thread(
                target=self._run, args=(host, found), name="resolver", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left
                return OSError(str(error))
            return await found

    def _run(self, host: str, found: "asyncio.Future[Sequence[str] | OSError]") -> None:
        try:
            result: Sequence[str] | OSError = self._look_up(host)
        except OSError as error:
            result = error
        except ValueError as error:  # a name that the system's look-up does not take
            result = OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(_answer, found, result)


def _answer(
    found: "asyncio.Future[Sequence[str] | OSError]", result: Sequence[str] | OSError
) -> None:
    if not found.done():
        found.set_result(result)
