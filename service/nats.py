"""NATS: a connection, and the stream that mirrors the log as JetStream holds it.

The only caller of nats-py. A connection lives until it is lost, and is then made anew by whoever
needs it: nothing is kept back to be sent on another one. What NATS cannot answer now leaves as
MirrorUnavailable.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import nats
from nats.aio.client import Client
from nats.errors import FlushTimeoutError
from nats.js import JetStreamContext
from nats.js.api import StreamConfig, StreamInfo
from nats.js.errors import APIError, NotFoundError

from service.errors import ConfigError, MirrorUnavailable
from service.event import Event
from service.mirrored import event_of
from service.nats_credentials import NatsCredentials
from service.nats_settings import NatsSettings

log = logging.getLogger("causeway.nats")

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 5.0
PING_S = 5  # a half-open connection is found out after two of them
CLOSE_TIMEOUT_S = 2.0
INBOX_PREFIX = "_INBOX"
_AWAY = 500  # JetStream's codes from here on: it cannot now


@dataclass(frozen=True, slots=True)
class State:
    """Where the stream begins and ends. With no message left `first` is `last` + 1."""

    first: int
    last: int
    messages: int
    config: StreamConfig


class Connection:
    """One connection; `lost` is set when it ends, for whatever reason."""

    def __init__(self, client: Client, lost: asyncio.Event) -> None:
        self.client = client
        self.lost = lost
        self.jetstream: JetStreamContext = client.jetstream(timeout=REQUEST_TIMEOUT_S)


@asynccontextmanager
async def connected(settings: NatsSettings, name: str) -> AsyncIterator[Connection]:
    """Give a connection called `name`, which is closed at the end of the block.

    Raises MirrorUnavailable if no server answers or lets us in, ConfigError for files that cannot
    be read.
    """
    lost = asyncio.Event()

    async def on_closed() -> None:
        lost.set()

    async def on_error(error: Exception) -> None:
        """Hear of each error; those that matter are raised as well, but for one."""
        log.debug("nats", extra={"reason": type(error).__name__})
        if isinstance(error, FlushTimeoutError):  # nobody takes what we send
            lost.set()

    options = _options(settings)
    client = Client()
    try:
        with translated():
            async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
                await client.connect(
                    list(settings.nats_urls),
                    name=name,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=PING_S,
                    max_outstanding_pings=2,
                    flush_timeout=REQUEST_TIMEOUT_S,
                    **options,
                )
        yield Connection(client, lost)
    finally:
        await _close(client)


async def _close(client: Client) -> None:
    """Close a connection, whether or not it was opened; cut it if nobody takes what is left."""
    transport = client._transport  # a `close` that was given up leaves it open
    with suppress(nats.errors.Error, TimeoutError, OSError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await client.close()
    writer = getattr(transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


@contextmanager
def translated() -> Iterator[None]:
    """Turn nats-py's errors into MirrorUnavailable, but for what is not found."""
    try:
        yield
    except NotFoundError:
        raise
    except APIError as error:
        is_refusal = error.code is not None and error.code < _AWAY
        what = "refuses" if is_refusal else "cannot answer now"
        said = error.description or "there is none"  # nobody answers: it is switched off
        raise MirrorUnavailable(f"JetStream {what}: {said}") from error
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise MirrorUnavailable(
            f"NATS cannot answer now: {str(error) or type(error).__name__}"
        ) from error


class Stream:
    """The stream `name`, seen through one connection."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name

    async def state(self) -> State | None:
        """Return where the stream begins and ends; None if there is none of that name."""
        with translated():
            try:
                info: StreamInfo = await self._connection.jetstream.stream_info(self.name)
            except NotFoundError:
                return None
        state = info.state
        return State(state.first_seq, state.last_seq, state.messages, info.config)

    async def event(self, position: int) -> Event | None:
        """Return the event at `position`; None if the stream does not have it (any more).

        Raises NotMirrored if the message is none of ours.
        """
        with translated():
            try:
                found = await self._connection.jetstream.get_msg(self.name, position)
            except NotFoundError:
                return None
        return event_of(found.headers or {}, found.data or b"")


def check_login(settings: NatsSettings) -> None:
    """Raise ConfigError, at the start, for what nobody could log in with."""
    _options(settings)


def _options(settings: NatsSettings) -> dict[str, Any]:
    """Return how to log in. Raises ConfigError."""
    options: dict[str, Any] = {}
    if settings.nats_user:
        options["user"] = settings.nats_user
    if settings.nats_password:
        options["password"] = settings.nats_password.get_secret_value()
    if settings.nats_token:
        options["token"] = settings.nats_token.get_secret_value()
    if settings.nats_credentials:
        options |= _credentials(settings.nats_credentials.get_secret_value())
    if _is_tls(settings):
        options["tls"] = _tls(settings)
    return options


def _credentials(text: str) -> dict[str, Any]:
    """nats-py would sign with a package of its own, which has no wheel for the image."""
    try:
        user = NatsCredentials.parse(text)
    except ValueError as error:
        raise ConfigError(f"CAUSEWAY_NATS_CREDENTIALS: {error}") from error
    return {"user_jwt_cb": user.jwt.encode, "signature_cb": user.sign}


def _is_tls(settings: NatsSettings) -> bool:
    named = settings.nats_ca or settings.nats_cert
    return named is not None or any(url.startswith("tls:") for url in settings.nats_urls)


def _tls(settings: NatsSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=cast(str | None, settings.nats_ca))
        if settings.nats_cert:
            context.load_cert_chain(settings.nats_cert, settings.nats_key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"CAUSEWAY_NATS_CA, _CERT or _KEY: cannot be read: {error}") from error
    return context
