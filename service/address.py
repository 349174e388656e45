"""Who is calling, seen through proxies that we trust, and whether it may.

Pure. `X-Forwarded-For` is read from its right end, where our own proxies wrote, and only as far as
the callers named there are trusted proxies too: what stands further left is hearsay.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from service.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def caller_address(
    peer: str | None, forwarded: Iterable[str], trusted_proxies: tuple[Network, ...]
) -> Address | None:
    """Return the address of whoever called first outside our proxies; None if it can't be told.

    `peer` is the socket's other end, `forwarded` the values of `X-Forwarded-For` in their order.
    """
    address = _parse(peer or "")
    hops = [hop for value in forwarded for hop in value.split(",")]
    while address is not None and hops and is_in(address, trusted_proxies):
        address = _parse(hops.pop().strip())
    return address


def came_by_tls(
    scheme: str, peer: str | None, forwarded: Iterable[str], trusted_proxies: tuple[Network, ...]
) -> bool:
    """True if the call came over TLS: to us, or, as a trusted proxy says, to the proxy.

    `forwarded` are the values of `X-Forwarded-Proto`; the last one is what the nearest proxy wrote.
    """
    address = _parse(peer or "")
    if address is None or not is_in(address, trusted_proxies):
        return scheme == "https"
    said = [value.strip() for values in forwarded for value in values.split(",")]
    return said[-1].lower() == "https" if said else scheme == "https"


@dataclass(frozen=True, slots=True)
class AllowList:
    """The addresses that may call, and the proxies whose word on them counts; empty, all may."""

    allowed: tuple[Network, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()

    def lets_in(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """True if a call with these headers, from `peer`, comes from an address that may call."""
        if not self.allowed:
            return True
        forwarded = [v.decode("latin-1") for k, v in headers if k == b"x-forwarded-for"]
        address = caller_address(peer, forwarded, self.trusted_proxies)
        return address is not None and is_in(address, self.allowed)


EVERYBODY = AllowList()


def is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    """True if one of `networks` holds `address`."""
    return any(address in network for network in networks)


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
