"""What the relay may call: the spelling of a callback URL, and the addresses it may lead to.

Pure. A URL is checked once, when a webhook is made; an address is judged whenever a connection is
opened, since DNS can change its answer between check and call. Public unicast addresses only, by
tables of our own: `ipaddress.is_global` calls multicast global and differs between Pythons.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import idna

from service.address import Address, is_in
from service.settings import Network, Networks

URL_MAX_CHARACTERS = 2048
_PORTS = {"https": 443, "http": 80}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_HOST_MAX_CHARACTERS = 253
# What inet_aton takes for a number: whoever resolves such a host may read it as an address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH_SAFE = "/%:@!$&'()*+,;=~"  # the characters of a path by RFC 3986, and what is escaped already
_QUERY_SAFE = _PATH_SAFE + "?"


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """A URL that may be tried: where its addresses lead is still to be judged."""

    scheme: str
    host: str  # ASCII, in lower case: a name, or an address without brackets
    port: int
    target: str  # path and query, as they stand on the request line
    text: str  # as it was written

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_callback_url(text: str, *, allow_http: bool) -> CallbackUrl:
    """Return the URL that `text` spells. Raises ValueError saying what is wrong with it."""
    if len(text) > URL_MAX_CHARACTERS:
        raise ValueError(f"the URL is longer than {URL_MAX_CHARACTERS} characters")
    # Before urlsplit, which drops some of them without a word.
    if " " in text or not text.isprintable():
        raise ValueError("the URL has white space or control characters")
    if "#" in text:
        raise ValueError("the URL has a fragment (#...): no server would see it")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"the URL can't be read: {error}") from error
    _check_scheme(parts.scheme, allow_http)
    host, port = _host_and_port(parts.netloc, _PORTS[parts.scheme])
    path, query = quote(parts.path or "/", _PATH_SAFE), quote(parts.query, _QUERY_SAFE)
    return CallbackUrl(parts.scheme, host, port, f"{path}?{query}" if query else path, text)


def _check_scheme(scheme: str, allow_http: bool) -> None:
    if scheme == "http" and not allow_http:
        raise ValueError("the URL must begin with https://: http is not allowed here")
    if scheme not in _PORTS:
        raise ValueError("the URL must begin with https://")


def _host_and_port(netloc: str, default: int) -> tuple[str, int]:
    if "@" in netloc:
        raise ValueError("the URL has user info (...@): use a header for credentials")
    if netloc.startswith("["):
        inner, _, rest = netloc[1:].partition("]")
        host = _ipv6(inner)
        if rest and not rest.startswith(":"):
            raise ValueError("the URL has something between the ] of its host and the port")
        return host, _port(rest[1:], default)
    host, _, port = netloc.partition(":")
    if ":" in port:
        raise ValueError("the host has colons: an IPv6 address must stand in brackets")
    if not host:
        raise ValueError("the URL has no host")
    return _name(host), _port(port, default)


def _port(text: str, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError("the port must be a number from 1 to 65535")
    return int(text)


def _ipv6(text: str) -> str:
    if "%" in text:
        raise ValueError("the host is an IPv6 address with a zone: no other machine knows it")
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise ValueError("the host in brackets is not an IPv6 address") from error


def _name(text: str) -> str:
    """Return a name, or an IPv4 address in its one usual spelling, in ASCII."""
    host = text.lower() if text.isascii() else _ascii(text)
    labels = host.split(".")
    if host.endswith("."):
        raise ValueError("the host ends with a dot: certificates name hosts without one")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(host)
    if len(host) > _HOST_MAX_CHARACTERS or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("the host is not a host's name")
    return host


def _ascii(text: str) -> str:
    try:
        return idna.encode(text, uts46=True).decode("ascii").lower()
    except UnicodeError as error:  # idna.IDNAError is one
        raise ValueError(f"the host is not an international name: {error}") from error


def _ipv4(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise ValueError(
            "the host is an odd spelling of an IPv4 address (decimal, octal, hexadecimal or "
            "short): write four decimal numbers, such as 192.0.2.1"
        ) from error


def _table(*rows: tuple[str, str]) -> tuple[tuple[Network, str], ...]:
    return tuple((ipaddress.ip_network(network), what) for network, what in rows)


# The special-purpose registries of IANA; the first row that fits names an address.
_NOT_PUBLIC = _table(
    ("0.0.0.0/32", "unspecified"),
    ("0.0.0.0/8", "of this network only"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared behind a provider's NAT"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "a cloud's metadata service"),  # Azure's, on an address that looks public
    ("169.254.169.254/32", "a cloud's metadata service"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved for protocols"),
    ("192.0.2.0/24", "for documentation"),
    ("192.88.99.0/24", "a 6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "for documentation"),
    ("203.0.113.0/24", "for documentation"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::/96", "IPv4-compatible, which is out of use"),
    ("64:ff9b:1::/48", "NAT64 of a private network"),
    ("2001::/32", "Teredo"),
    ("2001:2::/48", "for benchmarks"),
    ("2001::/23", "reserved for protocols"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "for documentation"),
    ("fd00:ec2::254/128", "a cloud's metadata service"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "private"),
    ("ff00::/8", "multicast"),
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA gives out of IPv6
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# IPv6 networks whose last 32 bits are the IPv4 address that is meant.
_IPV4_LAST = (
    _MAPPED,
    _NAT64,
    ipaddress.ip_network("::/96"),
    ipaddress.ip_network("64:ff9b:1::/48"),
)


class AddressPolicy:
    """Public addresses, and those within `allowed`: nothing else is called."""

    def __init__(self, allowed: Networks) -> None:
        self._allowed = allowed

    def refusal(self, address: str) -> str | None:
        """Return None if `address` may be called, else a sentence saying why not.

        An IPv4 address inside an IPv6 one is judged too: both must be callable. Mapped and NAT64
        addresses are nothing but their IPv4 address, and `allowed` is applied to that.
        """
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return f"{address!r} is not an IP address"
        if isinstance(parsed, ipaddress.IPv4Address):
            return self._refusal(parsed)
        if parsed.scope_id is not None:
            return f"{address} has a zone: it is link-local"
        inside = _ipv4_inside(parsed)
        if parsed not in _MAPPED and parsed not in _NAT64:
            inside = (parsed, *inside)
        return next(filter(None, map(self._refusal, inside)), None)

    def _refusal(self, address: Address) -> str | None:
        if is_in(address, self._allowed):
            return None
        for network, what in _NOT_PUBLIC:
            if address in network:
                return f"{address} is {what}"
        if address.version == 6 and address not in _GLOBAL_UNICAST:
            return f"{address} is reserved"
        return None


def _ipv4_inside(address: ipaddress.IPv6Address) -> tuple[Address, ...]:
    """Return the IPv4 addresses that packets to `address` may end up at, by its spelling."""
    if address.teredo is not None:
        return address.teredo
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if is_in(address, _IPV4_LAST):
        return (ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF),)
    return ()
