"""Slows whoever tries tokens: after some bad logins an address waits, twice as long each time.

A token has 256 random bits and cannot be guessed; this keeps the log, the metric and the database
calm. Bounded: the addresses that failed longest ago are forgotten first.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from service.address import Address

FREE = 3  # bad logins before the first wait
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
FORGET_S = 900.0
ADDRESSES_MAX = 1024
_IPV6_PREFIX = 64  # who has one address of IPv6 has as many


class Attempts:
    """The bad logins of each address, lately."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait_s(self, address: Address | None) -> float:
        """Return for how long the address must wait before its next try; 0 if it need not."""
        failures, last = self._failures.get(_name(address), (0, 0.0))
        if failures < FREE or self._now() - last > FORGET_S:
            return 0.0
        wait = min(FIRST_WAIT_S * 2.0 ** min(failures - FREE, 20), LONGEST_WAIT_S)
        return max(0.0, last + wait - self._now())

    def failed(self, address: Address | None) -> None:
        """Note a bad login."""
        name = _name(address)
        failures, last = self._failures.pop(name, (0, 0.0))
        if self._now() - last > FORGET_S:
            failures = 0
        self._failures[name] = failures + 1, self._now()
        if len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)

    def succeeded(self, address: Address | None) -> None:
        """Forget the bad logins of an address."""
        self._failures.pop(_name(address), None)


def _name(address: Address | None) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)
