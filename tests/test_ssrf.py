"""A callback never leads into the operator's own network: each spelling, when made and when called.

A receiver listens on the loopback all the while, and must see no call. Redirects, and names whose
addresses change between check and call, are tried in test_relay and test_callback.
"""

import asyncio
from collections.abc import Iterator

import httpx2
import pytest

from tests.logkeeping import Owner
from tests.receiver import Receiver
from tests.relaying import KEY, add_to, append
from tests.running import ADMIN_TOKEN, WITHIN_S
from tests.test_receive import Start

# Hosts that lead to this machine, or would with some resolver; PORT is the receiver's.
LOOPBACK = (
    *("127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001"),
    *("0177.0.0.1", "0x7f.0.0.1", "0x7f.1", "127.0.0.01", "127.0.0.1.", "00000127.0.0.1"),
    *("0.0.0.0", "0", "0.1.2.3", "localhost", "LOCALHOST", "localhost.", "loc%61lhost"),
    # Unicode that folds to digits, dots and letters.
    *("\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "127\uff0e1", "①②⑦.⓪.⓪.①"),
    *("ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1", "loca\u00adlhost", "xn--127-.0.0.1"),
    # IPv6, with IPv4 inside: mapped, compatible, translated, NAT64, 6to4, Teredo; zones.
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *("[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]"),
    *("[2002:7f00:1::1]", "[2001:0:7f00:1::1]", "[2001:0:1::80ff:fffe]", "[::1%25lo]", "[::1%lo]"),
    "[fe80::1%25lo]",
    # What another parser might take for another host.
    *("user@127.0.0.1", "example.com@127.0.0.1", "example.com:80@127.0.0.1", "127.0.0.1#@e.com"),
    *("127.0.0.1\\@e.com", "e.com\\@127.0.0.1", "127.0.0.1%00.e.com", "127.0.0.1%2f@e.com"),
    *("[127.0.0.1]", "[::1].e.com", "127.0.0.1:PORT:80", "127.0.0.1\t", "127.0.0.1 ", " localhost"),
)
# Addresses of networks that are nobody else's business.
INTERNAL = (
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1"),
    *("169.254.1.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "192.0.2.1"),
    *("[fc00::1]", "[fd12::1]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "[100::1]", "[2001:db8::1]"),
)
# Metadata of AWS, its tasks, Alibaba, Oracle, Azure, and their IPv6 addresses, Google's among them.
METADATA = (
    *("169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    *("[fd00:ec2::254]", "[fd00:ec2::23]", "[fd20:ce::254]", "[::ffff:169.254.169.254]"),
    *("[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "0xa9fea9fe", "2852039166"),
)
ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
# A relay with the rules of production, but for http, which the receiver speaks.
GUARDED = {"secret_key": KEY, "relay_allow_http": "true", "relay_timeout_s": 2.0}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def urls(receiver: Receiver) -> list[str]:
    hosts = (*LOOPBACK, *INTERNAL, *METADATA)
    texts = [
        f"http://{host.replace('PORT', str(receiver.port))}:{receiver.port}/good" for host in hosts
    ]
    return [*texts, "file:///etc/passwd", "gopher://127.0.0.1/", "//127.0.0.1/", "http:127.0.0.1"]


async def test_no_webhook_is_made_that_leads_inside(start: Start, receiver: Receiver) -> None:
    service = await start(**GUARDED)
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        for url in urls(receiver):
            answer = await client.post("/api/webhooks", json={"url": url})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request"), url
            assert answer.json()["error"]["message"].startswith("url: "), url
        assert (await client.get("/api/webhooks")).json() == {"webhooks": []}
    assert receiver.count() == 0


async def test_no_webhook_that_was_made_before_leads_inside(
    start: Start, receiver: Receiver, owner: Owner
) -> None:
    """As if its name had led elsewhere when it was made, or another setting had allowed it."""
    service = await start(**GUARDED | {"relay_timeout_s": WITHIN_S})
    hosts = ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]")
    made = [await add_to(service, f"http://{host}:{receiver.port}/good") for host in hosts]
    odd = await add_to(service, f"http://2130706433:{receiver.port}/good")
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        for webhook in made:
            answer = await client.post(f"/api/webhooks/{webhook.webhook_id}/test")
            assert answer.json()["error"] == "address_denied", webhook.url
        assert (await client.post(f"/api/webhooks/{odd.webhook_id}/test")).status_code == 400
    await append(service.service.eventlog)
    await _denied(owner, len(made) + 1)
    assert receiver.count() == 0


async def _denied(owner: Owner, count: int) -> None:
    """Wait until so many deliveries were tried; none of them got further than the address."""
    async with asyncio.timeout(WITHIN_S):
        while len(rows := await owner.fetch("SELECT error, status FROM causeway.attempt")) < count:
            await asyncio.sleep(0.05)
    assert {(row["error"], row["status"]) for row in rows} == {("address_denied", None)}
