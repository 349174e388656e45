"""What may be called: spellings of URLs, and the addresses behind them."""

import ipaddress
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.callback_url import (
    URL_MAX_CHARACTERS,
    AddressPolicy,
    CallbackUrl,
    parse_callback_url,
)
from service.settings import Networks


def networks(*texts: str) -> Networks:
    """Return the networks that `texts` name."""
    return tuple(ipaddress.ip_network(text) for text in texts)


PUBLIC = AddressPolicy(())


@pytest.mark.parametrize(
    ("text", "host", "port", "target", "authority"),
    [
        ("https://example.com", "example.com", 443, "/", "example.com"),
        ("HTTPS://Example.COM/A", "example.com", 443, "/A", "example.com"),
        ("https://example.com:443/", "example.com", 443, "/", "example.com"),
        ("https://example.com:/", "example.com", 443, "/", "example.com"),
        ("https://example.com:8443/a/b", "example.com", 8443, "/a/b", "example.com:8443"),
        ("https://example.com?a=b&c=%20", "example.com", 443, "/?a=b&c=%20", "example.com"),
        ("https://e.com/a?u=https://x.y/?z", "e.com", 443, "/a?u=https://x.y/?z", "e.com"),
        ('https://e.com/é?ü="', "e.com", 443, "/%C3%A9?%C3%BC=%22", "e.com"),
        ("https://e.com/a|b\\c", "e.com", 443, "/a%7Cb%5Cc", "e.com"),
        ("https://bücher.example/", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
        ("https://faß.example/", "xn--fa-hia.example", 443, "/", "xn--fa-hia.example"),
        ("https://receiver/", "receiver", 443, "/", "receiver"),
        ("https://my_app.example/", "my_app.example", 443, "/", "my_app.example"),
        ("https://1.2.3.4:1/", "1.2.3.4", 1, "/", "1.2.3.4:1"),
        ("https://\uff11.2.3.4/", "1.2.3.4", 443, "/", "1.2.3.4"),
        ("https://[2606:4700::0:1]/", "2606:4700::1", 443, "/", "[2606:4700::1]"),
        ("https://[2606:4700::1]:65535/", "2606:4700::1", 65535, "/", "[2606:4700::1]:65535"),
    ],
)
def test_a_url_is_taken_apart(text: str, host: str, port: int, target: str, authority: str) -> None:
    url = parse_callback_url(text, allow_http=False)
    assert url == CallbackUrl("https", host, port, target, text)
    assert url.authority == authority


def test_http_is_taken_only_where_it_is_allowed() -> None:
    assert parse_callback_url("http://example.com", allow_http=True).port == 80
    with pytest.raises(ValueError, match="http is not allowed"):
        parse_callback_url("http://example.com", allow_http=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must begin with https://"),
        ("example.com/hook", "must begin with https://"),
        ("ftp://example.com", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("//example.com", "must begin with https://"),
        ("https:", "no host"),
        ("https:example.com", "no host"),
        ("https:/example.com", "no host"),
        ("https:///path", "no host"),
        ("https://:443/", "no host"),
        ("https://user@example.com", "user info"),
        ("https://user:pass@example.com", "user info"),
        ("https://good.example@169.254.169.254/", "user info"),
        ("https://evil.example\\@good.example/", "user info"),
        ("https://example.com/#", "fragment"),
        ("https://example.com#@evil.example/", "fragment"),
        (" https://example.com", "white space"),
        ("https://exam ple.com", "white space"),
        ("https://example.com/\r\nHost: x", "control"),
        ("https://exam\tple.com/", "control"),
        ("https://example.com/\0", "control"),
        ("https://example.com/\x7f", "control"),
        ("https://example.com/\u200b", "control"),
        ("https://example.com/\ud800", "control"),
        ("https://e.com/" + "a" * URL_MAX_CHARACTERS, "longer than 2048"),
        ("https://2130706433/", "odd spelling of an IPv4"),
        ("https://0177.0.0.1/", "odd spelling of an IPv4"),
        ("https://0x7f.1/", "odd spelling of an IPv4"),
        ("https://0x7F000001/", "odd spelling of an IPv4"),
        ("https://0x/", "odd spelling of an IPv4"),
        ("https://127.1/", "odd spelling of an IPv4"),
        ("https://127.0.0.01/", "odd spelling of an IPv4"),
        ("https://127.0.0.0x1/", "odd spelling of an IPv4"),
        ("https://1.2.3.4.5/", "odd spelling of an IPv4"),
        ("https://256.1.1.1/", "odd spelling of an IPv4"),
        ("https://example.1/", "odd spelling of an IPv4"),
        ("https://\uff11\uff12\uff17.1/", "odd spelling of an IPv4"),
        ("https://127。1/", "odd spelling of an IPv4"),
        ("https://127.0.0.1./", "ends with a dot"),
        ("https://example.com./", "ends with a dot"),
        ("https://a..example/", "not a host's name"),
        ("https://-a.example/", "not a host's name"),
        ("https://a%2eexample/", "not a host's name"),
        ("https://example.com\\a/", "not a host's name"),
        ("https://" + "a" * 64 + ".example/", "not a host's name"),
        ("https://" + "a." * 130 + "example/", "not a host's name"),
        ("https://xn--\u00e9.example/", "not an international name"),
        ("https://example.com:0/", "port must be"),
        ("https://example.com:65536/", "port must be"),
        ("https://example.com:-1/", "port must be"),
        ("https://example.com:٣/", "port must be"),
        ("https://example.com:1:2/", "must stand in brackets"),
        ("https://[fe80::1%eth0]/", "zone"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://[1.2.3.4]/", "can't be read|not an IPv6"),
        ("https://[::1/", "can't be read"),
        ("https://[::1]a/", "between the ]|can't be read"),
        ("https://[v1.a]/", "can't be read|not an IPv6"),
        ("https://2606:4700::1/", "must stand in brackets"),
    ],
)
def test_a_url_that_may_not_be_called_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_callback_url(text, allow_http=False)


HOSTILE = st.text(alphabet=string.printable + "é。\uff11٣ß\u200b\ud800", max_size=40)


@given(HOSTILE | st.text(), st.booleans())
@example("[", False)
@example("]@:/", True)
@example("xn--a", True)
def test_any_text_is_a_url_or_a_value_error(text: str, allow_http: bool) -> None:
    for whole in (text, f"https://{text}", f"http://{text}/", f"https://e.com:{text}"):
        try:
            url = parse_callback_url(whole, allow_http=allow_http)
        except ValueError as error:
            assert str(error)
            continue
        assert url.scheme == "https" or allow_http
        assert 1 <= url.port <= 65535
        request_line = f"POST {url.target} HTTP/1.1 {url.authority}"
        assert request_line.isascii()
        assert request_line.isprintable()
        assert len(request_line.split(" ")) == 4


@given(st.ip_addresses(v=4))
def test_a_number_that_means_an_address_is_never_taken_for_a_name(
    address: ipaddress.IPv4Address,
) -> None:
    number, parts = int(address), str(address).split(".")
    spellings = [str(number), hex(number), f"0{number:o}", f"{parts[0]}.{number & 0xFFFFFF}"]
    spellings += [
        ".".join(f"0{int(part):o}" for part in parts),
        ".".join(map(hex, map(int, parts))),
    ]
    for spelling in spellings:
        with pytest.raises(ValueError, match="odd spelling"):
            parse_callback_url(f"https://{spelling}/", allow_http=False)


CALLABLE = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255"),
    *("172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255"),
    *("198.20.0.0", "223.255.255.255", "168.63.129.17"),
    *("2000::1", "2606:4700:4700::1111", "2a00:1450::1", "2001:200::1", "2001:4860:4860::8888"),
    *("::ffff:8.8.8.8", "::ffff:808:808", "64:ff9b::8.8.8.8", "3fff:1000::1"),
]

REFUSED = [
    *[("0.0.0.0", "unspecified"), ("0.1.2.3", "this network"), ("10.0.0.0", "private")],
    *[("10.255.255.255", "private"), ("100.64.0.0", "shared"), ("100.100.100.200", "shared")],
    *[("100.127.255.255", "shared"), ("127.0.0.1", "loopback"), ("127.255.255.255", "loopback")],
    *[("169.254.0.1", "link-local"), ("169.254.169.254", "metadata")],
    *[("168.63.129.16", "metadata"), ("169.254.170.2", "link-local")],
    *[("172.16.0.0", "private"), ("172.31.255.255", "private"), ("192.0.0.9", "protocols")],
    *[("192.0.0.192", "protocols"), ("192.0.2.1", "documentation"), ("192.88.99.1", "6to4")],
    *[("192.168.0.0", "private"), ("192.168.255.255", "private"), ("198.18.0.0", "benchmarks")],
    *[("198.19.255.255", "benchmarks"), ("198.51.100.7", "documentation")],
    *[("203.0.113.7", "documentation"), ("224.0.0.1", "multicast"), ("224.0.1.1", "multicast")],
    *[("239.255.255.255", "multicast"), ("240.0.0.1", "reserved"), ("255.255.255.254", "reserved")],
    *[("255.255.255.255", "broadcast"), ("::", "unspecified"), ("::1", "loopback")],
    *[("fc00::1", "private"), ("fd12:3456::1", "private"), ("fd00:ec2::254", "metadata")],
    *[("fe80::1", "link-local"), ("fe80::1%eth0", "zone"), ("2a00::1%eth0", "zone")],
    *[("fec0::1", "private"), ("ff02::1", "multicast"), ("ff0e::1", "multicast")],
    *[("2001:db8::1", "documentation"), ("3fff::1", "documentation"), ("100::1", "reserved")],
    *[("2001:2::1", "benchmarks"), ("2001:10::1", "protocols"), ("2001:20::1", "protocols")],
    *[
        ("4000::1", "reserved"),
        ("5f00::1", "reserved"),
        ("1::1", "reserved"),
        ("e000::", "reserved"),
    ],
    # IPv4 inside IPv6.
    *[("::ffff:127.0.0.1", "loopback"), ("::ffff:7f00:1", "loopback")],
    *[("0:0:0:0:0:ffff:a9fe:a9fe", "metadata"), ("::ffff:224.0.0.1", "multicast")],
    *[("64:ff9b::127.0.0.1", "loopback"), ("64:ff9b::a9fe:a9fe", "metadata")],
    *[("64:ff9b::10.0.0.1", "private"), ("64:ff9b:1::8.8.8.8", "NAT64")],
    *[("64:ff9b:1::127.0.0.1", "NAT64"), ("64:ff9b:2::1", "reserved")],
    *[("2002:7f00:1::1", "6to4"), ("2002:808:808::1", "6to4")],
    *[("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"), ("::127.0.0.1", "IPv4-compatible")],
    *[("::8.8.8.8", "IPv4-compatible"), ("::ffff:0:127.0.0.1", "reserved")],
    *[
        ("localhost", "not an IP"),
        ("", "not an IP"),
        ("127.1", "not an IP"),
        ("[::1]", "not an IP"),
    ],
]


@pytest.mark.parametrize("address", CALLABLE)
def test_a_public_address_may_be_called(address: str) -> None:
    assert PUBLIC.refusal(address) is None


@pytest.mark.parametrize(("address", "why"), REFUSED)
def test_what_is_not_public_is_refused_with_the_reason(address: str, why: str) -> None:
    refusal = PUBLIC.refusal(address)
    assert refusal is not None
    assert why in refusal


@pytest.mark.parametrize(
    ("address", "allowed", "is_callable"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("64:ff9b::10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", True),  # public all the same
        ("192.168.0.1", "10.0.0.0/8", False),
        ("169.254.169.254", "10.0.0.0/8", False),
        ("fd00::1", "fd00::/8", True),
        ("fd00:ec2::254", "10.0.0.0/8", False),
        ("::1", "127.0.0.0/8", False),
        ("127.0.0.1", "::/0", False),
        ("::ffff:127.0.0.1", "::/0", False),  # an IPv4 address, whatever its spelling
        ("::127.0.0.1", "::/96", False),  # the one inside is judged too
        ("2002:7f00:1::1", "2002::/16", False),
        ("2002:808:808::1", "2002::/16", True),
        ("64:ff9b:1::127.0.0.1", "64:ff9b:1::/48", False),
        ("64:ff9b:1::8.8.8.8", "64:ff9b:1::/48", True),
        ("fe80::1%eth0", "fe80::/10", False),
    ],
)
def test_allowed_networks_open_themselves_and_nothing_else(
    address: str, allowed: str, is_callable: bool
) -> None:
    assert (AddressPolicy(networks(allowed)).refusal(address) is None) is is_callable


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_callable(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_private or address.is_multicast or address.is_reserved or address.is_link_local:
        mapped = address.version == 6 and address in ipaddress.ip_network("::ffff:0:0/96")
        nat64 = address.version == 6 and address in ipaddress.ip_network("64:ff9b::/96")
        assert mapped or nat64 or PUBLIC.refusal(str(address)) is not None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_spelling(address: ipaddress.IPv4Address) -> None:
    for policy in (PUBLIC, AddressPolicy(networks("10.0.0.0/8", "127.0.0.0/8"))):
        plain = policy.refusal(str(address))
        assert policy.refusal(f"::ffff:{address}") == plain
        assert policy.refusal(f"64:ff9b::{address}") == plain


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert PUBLIC.refusal(f"x{text}") is not None
