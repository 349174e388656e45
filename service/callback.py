"""The relay's HTTP client: POST to a callback, and what came of it. The relay's only one.

The host is resolved for each new connection, every address judged, and the connection goes to a
judged address, never to a name. Redirects are not followed, nothing of the environment is used (but
OpenSSL's own SSL_CERT_FILE and SSL_CERT_DIR), nothing is logged. One timeout covers all, from the
look-up to the last byte.
"""

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from service.callback_connection import CallbackConnection, Failed, Reply
from service.callback_pool import CallbackPool
from service.callback_url import AddressPolicy, CallbackUrl
from service.deadline import Deadline
from service.resolver import LookUp, Resolver, look_up

ERRORS = ("address_denied", "dns", "refused", "tls", "timeout", "connection", "protocol")
_MAX_ADDRESSES = 4  # of one host, tried one after another
_RETRY_AFTER_MAX_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call."""

    status: int | None  # None: no head of an answer came
    error: str | None  # one of ERRORS; None: a whole answer came, whatever its status
    body: bytes  # its first bytes, at most 10 KB
    duration_s: float
    retry_after_s: float | None  # None: absent or unreadable; never negative

    @property
    def is_success(self) -> bool:
        """True if a whole answer came and its status is 2xx."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


class Callbacks:
    """Calls callbacks, over connections that are kept open. Must be made in a running loop."""

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        timeout_s: float,
        max_idle: int = 32,
        tls: ssl.SSLContext | None = None,
        look_up: LookUp = look_up,
    ) -> None:
        """Keep up to `max_idle` unused connections for each scheme, host and port.

        `tls` replaces what callbacks' certificates are verified with.
        """
        self._loop = asyncio.get_running_loop()
        self._policy = policy
        self._timeout_s = timeout_s
        self._tls = tls or default_tls()
        self._resolver = Resolver(look_up)
        self._pool = CallbackPool(self._loop, max_idle)

    async def post(
        self, url: CallbackUrl, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> Answer:
        """Send `body`, and return what came of it. Raises nothing but CancelledError.

        Host and Content-Length are added to `headers`, which hold neither. The request may be sent
        twice: a kept connection can end before it answers. Cancelling closes the connection.
        """
        started = time.perf_counter()  # the loop's clock stands still between its rounds
        reply, error = Reply(), None
        try:
            with Deadline(self._loop, self._timeout_s):
                await self._exchange(url, _request(url, headers, body), reply)
        except TimeoutError:
            error = "timeout"
        except Failed as failed:
            error = failed.error
        return Answer(
            status=reply.status,
            error=error,
            body=bytes(reply.body),
            duration_s=time.perf_counter() - started,
            retry_after_s=retry_after_s(reply.header(b"retry-after"), datetime.now(UTC)),
        )

    async def check(self, url: CallbackUrl) -> str | None:
        """Return None if one of the host's addresses may be called, else a sentence saying why not.

        Nothing is called, and each later connection is judged anew.
        """
        try:
            with Deadline(self._loop, self._timeout_s):
                await self._addresses(url.host)
        except TimeoutError:
            return f"the host {url.host} could not be looked up in {self._timeout_s:g} s"
        except _Unreachable as unreachable:
            return unreachable.sentence
        return None

    async def close(self) -> None:
        """Close the unused connections. Calls that are under way are their callers' to cancel."""
        self._pool.close()
        self._resolver.close()

    async def _exchange(self, url: CallbackUrl, request: bytes, reply: Reply) -> None:
        key = (url.scheme, url.host, url.port)
        connection = self._pool.take(key)
        if connection is not None:
            try:
                await connection.exchange(request, reply)
            except Failed:
                if connection.has_answered:
                    raise
                connection = None  # it had ended unseen: the other end closes idle ones too
        if connection is None:
            connection = await self._connect(url)
            await connection.exchange(request, reply)
        self._pool.put(key, connection)

    async def _connect(self, url: CallbackUrl) -> CallbackConnection:
        """Open a connection to the first address that is allowed and takes it. Raises Failed."""
        addresses = await self._addresses(url.host)
        failed = Failed("connection")
        for address in addresses:
            try:
                # A share of the time each: an address that swallows packets must not take it all.
                with Deadline(self._loop, self._timeout_s / len(addresses)):
                    return await self._open(url, address)
            except TimeoutError:
                failed = Failed("timeout")
            except Failed as error:
                failed = error
        raise failed

    async def _open(self, url: CallbackUrl, address: str) -> CallbackConnection:
        is_tls = url.scheme == "https"
        try:
            _, connection = await self._loop.create_connection(
                lambda: CallbackConnection(self._loop),
                address,
                url.port,
                ssl=self._tls if is_tls else None,
                server_hostname=url.host if is_tls else None,
            )
        except ssl.SSLError as error:
            raise Failed("tls") from error
        except ConnectionRefusedError as error:
            raise Failed("refused") from error
        except ConnectionError as error:  # with TLS: hung up during the handshake
            raise Failed("tls" if is_tls else "connection") from error
        except TimeoutError:  # an OSError too
            raise
        except OSError as error:
            raise Failed("connection") from error
        return connection

    async def _addresses(self, host: str) -> list[str]:
        """Return the addresses of `host` that may be called, at least one. Raises _Unreachable."""
        try:
            found = [host] if _is_address(host) else await self._resolver.addresses(host)
        except OSError as error:
            sentence = f"the host {host} can't be resolved: {error.strerror or error}"
            raise _Unreachable("dns", sentence) from error
        refusals = [self._policy.refusal(address) for address in found]
        allowed = [a for a, refusal in zip(found, refusals, strict=True) if refusal is None]
        if not allowed:
            why = "; ".join(refusal for refusal in refusals[:_MAX_ADDRESSES] if refusal)
            see = "see CAUSEWAY_RELAY_ALLOWED_NETWORKS"
            sentence = f"the host {host} may not be called: {why}; {see}"
            raise _Unreachable("address_denied", sentence)
        return allowed[:_MAX_ADDRESSES]


class _Unreachable(Failed):
    """A host has no address that may be called."""

    def __init__(self, error: str, sentence: str) -> None:
        super().__init__(error)
        self.sentence = sentence


def retry_after_s(value: bytes | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After asks for (RFC 9110, section 10.2.3), at most a year.

    Never negative; None if there is no header or it is neither a number nor a date.
    """
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _RETRY_AFTER_MAX_S)
    try:
        date = parsedate_to_datetime(text)
        wait_s = (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, OverflowError, IndexError):  # an odd text trips it in many ways
        return None
    return min(max(wait_s.total_seconds(), 0.0), _RETRY_AFTER_MAX_S)


def _request(url: CallbackUrl, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return the request's bytes. Raises Failed for a header that would begin another line."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if not lines.count(b"\r") == lines.count(b"\n") == len(headers):
        raise Failed("protocol")
    return b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n%b\r\n%b" % (
        url.target.encode("ascii"),
        url.authority.encode("ascii"),
        len(body),
        lines,
        body,
    )


def _is_address(host: str) -> bool:
    """Tell whether a parsed host is an address: only names end with something else."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def default_tls() -> ssl.SSLContext:
    """Return what certificates are verified with: the system's authorities, TLS 1.2 or newer."""
    # Not ssl.create_default_context: it would log the keys to a file that SSLKEYLOGFILE names.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_default_certs()
    tls.set_alpn_protocols(["http/1.1"])
    return tls
