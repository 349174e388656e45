"""Who is calling, through proxies: tables, and what must hold for any header."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.address import Address, caller_address, came_by_tls, is_in
from service.settings import Network


def networks(*texts: str) -> tuple[Network, ...]:
    """Return the networks that `texts` name."""
    return tuple(ipaddress.ip_network(text) for text in texts)


TRUSTED = networks("10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller"),
    [
        ("1.2.3.4", [], "1.2.3.4"),
        ("1.2.3.4", ["5.6.7.8"], "1.2.3.4"),  # not our proxy: what it says counts for nothing
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["5.6.7.8"], "5.6.7.8"),
        ("10.0.0.1", ["9.9.9.9, 5.6.7.8"], "5.6.7.8"),
        ("10.0.0.1", ["9.9.9.9", "5.6.7.8"], "5.6.7.8"),
        ("10.0.0.1", ["9.9.9.9, 5.6.7.8, 10.0.0.2"], "5.6.7.8"),
        ("10.0.0.1", ["5.6.7.8,10.0.0.3", "10.0.0.2"], "5.6.7.8"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["::ffff:5.6.7.8"], "5.6.7.8"),
        ("::ffff:1.2.3.4", [], "1.2.3.4"),
        ("10.0.0.1", ["  5.6.7.8\t"], "5.6.7.8"),
        ("10.0.0.1", [""], None),
        ("10.0.0.1", ["5.6.7.8, "], None),
        ("10.0.0.1", ["unknown"], None),
        ("10.0.0.1", ["5.6.7.8:1234"], None),
        ("10.0.0.1", ["5.6.7.8, 300.1.1.1"], None),
        ("not an address", ["5.6.7.8"], None),
        ("", [], None),
        (None, ["5.6.7.8"], None),
    ],
)
def test_the_caller_is_whoever_called_our_outermost_proxy(
    peer: str | None, forwarded: list[str], caller: str | None
) -> None:
    expected = None if caller is None else ipaddress.ip_address(caller)
    assert caller_address(peer, forwarded, TRUSTED) == expected


def test_an_address_is_in_a_network_of_its_own_family_only() -> None:
    assert is_in(ipaddress.ip_address("10.9.9.9"), TRUSTED)
    assert is_in(ipaddress.ip_address("fd00::9"), TRUSTED)
    assert not is_in(ipaddress.ip_address("11.0.0.1"), TRUSTED)
    assert not is_in(ipaddress.ip_address("10.9.9.9"), ())
    assert not is_in(ipaddress.ip_address("::"), networks("0.0.0.0/0"))


ADDRESSES = st.ip_addresses()
HOPS = st.lists(st.text(max_size=20) | ADDRESSES.map(str), max_size=6)


@given(ADDRESSES, HOPS)
def test_a_peer_that_is_no_proxy_of_ours_cannot_pretend(
    peer: Address, forwarded: list[str]
) -> None:
    assert caller_address(str(peer), forwarded, ()) == caller_address(str(peer), [], ())


@given(HOPS, ADDRESSES)
def test_what_stands_left_of_an_untrusted_caller_changes_nothing(
    hearsay: list[str], caller: Address
) -> None:
    alone = caller_address("10.0.0.1", [str(caller)], networks("10.0.0.1/32"))
    joined = ", ".join([*hearsay, str(caller)])
    if str(caller) != "10.0.0.1":
        assert caller_address("10.0.0.1", [joined], networks("10.0.0.1/32")) == alone
        assert caller_address("10.0.0.1", [*hearsay, str(caller)], networks("10.0.0.1/32")) == alone


@given(st.text() | st.none(), st.lists(st.text()))
def test_any_text_gives_an_address_or_none(peer: str | None, forwarded: list[str]) -> None:
    address = caller_address(peer, forwarded, TRUSTED)
    assert address is None or isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)


@pytest.mark.parametrize(
    ("scheme", "peer", "forwarded", "expected"),
    [
        ("https", "9.9.9.9", [], True),
        ("http", "9.9.9.9", [], False),
        ("http", "9.9.9.9", ["https"], False),  # anybody can say so
        ("https", "9.9.9.9", ["http"], True),
        ("http", "10.0.0.1", ["https"], True),
        ("http", "10.0.0.1", ["HTTPS"], True),
        ("http", "10.0.0.1", [], False),
        ("http", "10.0.0.1", ["https, http"], False),  # the nearest proxy wrote last
        ("http", "10.0.0.1", ["http", "https"], True),
        ("http", None, ["https"], False),
    ],
)
def test_tls_is_what_we_see_or_a_trusted_proxy_says(
    scheme: str, peer: str | None, forwarded: list[str], expected: bool
) -> None:
    assert came_by_tls(scheme, peer, forwarded, networks("10.0.0.0/8")) is expected
