"""The targets: each takes any bytes, hands them to parsers, and lets only documented errors pass.

Hypothesis runs them in tests/test_fuzz_pure.py, atheris in tests/fuzz/__main__.py. What a parser
takes must also keep its word: that is asserted here.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from service import cursor, delivery_wish, webhook_body
from service.address import caller_address, came_by_tls
from service.answers import SubscribeError, problem, refusal, retry_after_s
from service.callback_url import AddressPolicy, parse_callback_url
from service.config import load, variables
from service.consumer_body import parse_ack
from service.consumer_body import parse_wish as parse_consumer
from service.dashboard.door import Form
from service.dashboard.pretty import hex_dump, lay_out
from service.dashboard.search import FIELDS, parse_before, parse_search
from service.dashboard.webhook_form import as_change, as_replay, as_start, as_wish
from service.errors import BadRequest, ConfigError, NotAcceptable, NotAnEvent
from service.event import (
    Event,
    chain_link,
    cloudevent_block,
    cloudevent_json,
    parse_event,
    sse_block,
    tombstone,
)
from service.filter import EVERYTHING
from service.pages import negotiate
from service.received import Event as Received
from service.received import parse_cloudevent
from service.signature import matching_secret, sign
from service.stream import PARAMS
from service.subscription import Subscription
from service.token_body import parse_token
from service.turn import parse_shard
from tests.sse import parse

Target = Callable[[bytes], None]

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
SECRETS = ("whsec-current", "whsec-previous")
POLICY = AddressPolicy(())
BODY = b'{"type":"item.refreshed"}'
GOOD = sign(BODY, SECRETS)


def parts(data: bytes, separator: bytes = b"\0") -> list[str]:
    """Return texts out of any bytes, as a header or a decoded body would hold them."""
    return [part.decode("utf-8", "replace") for part in data.split(separator)]


def signature(data: bytes) -> None:
    """`BridgeApi-Signature`: only who knows a secret is let in, whatever stands around it."""
    header = data.decode("latin-1")
    if matching_secret(BODY, header, SECRETS) is not None:
        assert any(claim[3:] in header.upper() for claim in GOOD.split(","))
    assert matching_secret(data, header, SECRETS) is None
    assert matching_secret(data, sign(data, SECRETS[1:]), SECRETS) == 1


def event(data: bytes) -> None:
    """A webhook's body, and what readers get of it."""
    try:
        new = parse_event(data, "default", NOW)
    except NotAnEvent:
        return
    link = chain_link(bytes(32), new.digest, 1, NOW, "default")
    stored = Event(
        1,
        link,
        NOW,
        new.source,
        new.type,
        new.topic,
        new.occurred_at,
        new.item_id,
        new.account_id,
        new.user_uuid,
        new.digest,
        data,
    )
    for one in (stored, tombstone(stored)):
        [message] = parse(sse_block(one))
        assert message.type == one.type
        assert message.data.split() == one.body.decode().split()
        orjson.loads(cloudevent_json(one))
        [message] = parse(cloudevent_block(one))
        received: Received[None] = parse_cloudevent(message.data)
        assert received.position == 1
        assert received.data.split() == one.body.split()
    lay_out(data.decode())


def query(data: bytes) -> None:
    """A stream's query and `Last-Event-ID`: filters, beginning, format, shard."""
    text, _, header = data.partition(b"\0")
    try:
        params = cursor.parse_query(text, PARAMS)
        cursor.parse_wish(params, EVERYTHING).filter.matcher()
        cursor.parse_begin(params, header.decode("latin-1") or None, cursor.Live())
        parse_shard(cursor.single(params, "shard"))
    except BadRequest:
        return


def listing(data: bytes) -> None:
    """The query of a webhook's deliveries, and a position in a path."""
    try:
        delivery_wish.parse_listing(cursor.parse_query(data, delivery_wish.PARAMS))
        delivery_wish.parse_position(data.decode("utf-8", "replace"))
    except BadRequest:
        return


def bodies(data: bytes) -> None:
    """The JSON that callers send: consumers, acknowledgements, webhooks, replays, tokens."""
    for read in (
        lambda: parse_consumer("billing", data),
        lambda: parse_consumer(parts(data)[0], b"{}"),
        lambda: parse_ack("billing", data),
        lambda: webhook_body.parse_wish(data, allow_http=False),
        lambda: webhook_body.parse_change(data, allow_http=True),
        lambda: webhook_body.parse_start(data),
        lambda: delivery_wish.parse_replay(data),
        lambda: parse_token(data),
    ):
        try:
            read()
        except BadRequest as error:
            assert len(error.message) < 1000


def callback(data: bytes) -> None:
    """A callback's URL: what is taken is spelt in one way, and names one host."""
    text = data.decode("utf-8", "replace")
    try:
        url = parse_callback_url(text, allow_http=True)
    except ValueError:
        return
    assert url.host.isascii()
    assert 0 < url.port < 65536
    assert not set(url.host + url.target) & set(" \t\r\n\0")
    POLICY.refusal(url.host)


def headers(data: bytes) -> None:
    """Accept, X-Forwarded-For and -Proto, the host of a peer."""
    texts = [part.decode("latin-1") for part in data.split(b"\0")]
    caller_address(texts[0], texts, ())
    came_by_tls("http", texts[0], texts, ())
    try:
        assert negotiate(texts[0], ("application/json", "a/b")) in ("application/json", "a/b")
    except NotAcceptable:
        return


def settings(data: bytes) -> None:
    """The environment: DSNs, networks, secrets, numbers. No message shows a secret."""
    names = sorted(name for name in variables() if not name.endswith("_DIR"))
    texts = parts(data)
    chosen = [names[part[0] % len(names)] for part in data.split(b"\0") if part]
    environ = dict(zip(chosen, (text[1:] for text in texts if text), strict=False))
    environ = {name: value for name, value in environ.items() if value}
    try:
        load(environ)
    except ConfigError as error:
        assert str(error).strip()


def forms(data: bytes) -> None:
    """What is typed into the dashboard: searches, a webhook's settings, replays."""
    form: Form = {}
    for text in parts(data):
        name, _, value = text.partition("=")
        form.setdefault(name, []).append(value)
    typed = {name: form.get(name, [""])[0] for name in (*FIELDS, "at")}
    for read in (
        lambda: parse_search(typed),
        lambda: parse_before(parts(data)[0]),
        lambda: webhook_body.parse_wish(as_wish(form), allow_http=False),
        lambda: webhook_body.parse_change(as_change(form), allow_http=False),
        lambda: webhook_body.parse_start(as_start(form)),
        lambda: delivery_wish.parse_replay(as_replay(form)),
    ):
        try:
            read()
        except BadRequest as error:
            assert error.message
    lay_out(data.decode("utf-8", "replace"))
    hex_dump(data)


def answers(data: bytes) -> None:
    """What a client is answered: by us, by a proxy, by anybody."""
    code, message = problem(data)
    assert isinstance(code, str)
    assert isinstance(message, str)
    refusal(409, data)
    retry_after_s(data.decode("latin-1"))
    texts = parts(data)
    names = ("message", "stream.lease", "stream.closing", "item.refreshed")
    subscription: Subscription[None] = Subscription(consumer="billing")
    try:
        subscription.opened(is_filtered=False, lease=texts[0] if len(texts) > 2 else "1")
        for number, text in enumerate(texts):
            subscription.receive(text[:20], names[number % 4], text)
            subscription.receive(text[:20], "", "")
    except SubscribeError:
        return


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(signature, event, query, listing, bodies, callback, headers, settings, forms, answers),
    )
}

# Where a fuzzer begins: one good input at least for each target.
SEEDS: dict[str, list[bytes]] = {
    "signature": [GOOD.encode(), b"v1=00,v2=11", b" v1=" + b"a" * 64 + b"\t,"],
    "event": [
        b'{"content":{"item_id":1,"account_id":2,"user_uuid":'
        b'"9a95b38f-f98b-417a-988b-9d0d584893e7","balance":1.10},"timestamp":1612782588323,'
        b'"type":"item.account.updated"}',
        b'\r\n{"type":"a","timestamp":1e300,"content":[{"x":null}]}\n',
    ],
    "query": [
        b"type=item.*&item_id=1&user_uuid=9a95b38f-f98b-417a-988b-9d0d584893e7&source=default",
        b"after=1042.9f3ac01b&control=1&format=cloudevents\x001042.9f3ac01b",
        b"since=2026-11-23T09:00:00Z&shard=0/4&consumer=billing&wait=0",
        b"from=start&account_id=-1",
    ],
    "listing": [b"state=pending&since=2026-11-23&before=9&limit=5&type=item.*", b"1042"],
    "bodies": [
        b'{"start":"now","filter":{"types":["item.*"],"item_ids":[1]},"ack_mode":"explicit",'
        b'"lease_s":30,"reset":true}',
        b'{"position":"1042.9f3ac01b","lease":17,"shard":"0/4"}',
        b'{"url":"https://example.com/x","application":"a","types":null,"sources":["default"],'
        b'"headers":{"X-Api-Key":"k"},"ordered":true,"start":7,"name":"n"}',
        b'{"state":"exhausted","from":"start","until":"2026-11-23T09:00:00Z","rate":5,'
        b'"dry_run":true,"user_uuids":["9a95b38f-f98b-417a-988b-9d0d584893e7"]}',
        b'{"name":"billing","scope":"stream","expires_at":"2100-01-01T00:00:00Z"}',
    ],
    "callback": [
        b"https://example.com:8443/a?b=c",
        b"http://[2001:db8::1]/",
        b"https://xn--nxasmq6b/",
        "https://bücher.example/%20".encode(),
        b"https://0x7f.1/",
    ],
    "headers": [b"application/json;q=0.5, a/*;q=1\x0010.0.0.1, ::1\0https"],
    "settings": [
        bytes([0]) + b"postgresql://a:b@h:5432/d?sslmode=require\0" + bytes([1]) + b"10.0.0.0/8",
        bytes([9]) + b"0.5\0" + bytes([3]) + b"ingest,stream",
    ],
    "forms": [
        b"type=item.*\0item_id=1, 2\0at=2026-11-23 09:00",
        b"events=some\0types=item.*\0url=https://example.com/\0headers=X-A: b\n\nX-C: d"
        b"\0start=place\0place=2026-11-23 09:00",
        b"state=all\0item_ids=1 -2\0from=start\0until=7\0rate=1e3",
    ],
    "answers": [
        b'{"error":{"code":"log_diverged","message":"m"}}',
        b'1\0{"lease":17,"position":1040}\0{"reason":"drain"}\0',
        json.dumps(
            {
                "specversion": "1.0",
                "id": "1.00000000",
                "source": "/bridge/default",
                "type": "a",
                "time": "2026-11-23T09:00:00Z",
                "receivedtime": "2026-11-23T09:00:00Z",
                "data": {},
            }
        ).encode(),
    ],
}
