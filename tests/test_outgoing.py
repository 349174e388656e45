"""A delivery's headers: an independent library and a handler written for Bridge verify them."""

import base64
import hmac
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from service import __version__
from service.errors import SecretUnreadable
from service.filter import EVERYTHING
from service.outgoing import Signer
from service.payloads import TEST_EVENT
from service.webhook_value import SECRET_PREFIX, Webhook, new_secret

BODY = b'{"content":{"balance":1678.10},"timestamp":1612782588323,"type":"item.account.updated"}'
ID = "1042.9f3ac01b"
NOW = datetime.now(UTC)
OLD, CURRENT = new_secret(), new_secret()


def webhook(**fields: Any) -> Webhook:
    """Return a webhook as the relay holds it."""
    plain = Webhook(
        webhook_id=12,
        application="default",
        name=None,
        url="https://example.com/",
        filter=EVERYTHING,
        is_ordered=False,
        headers={},
        secret=CURRENT,
        previous_secret=None,
        previous_secret_until=None,
        version=1,
        created_at=NOW,
        created_by="tests",
        enabled_at=NOW,
        disabled_at=None,
        disabled_reason=None,
        cursor_position=0,
        accounted_from=0,
        backfill_until=0,
        failures=0,
        failing_since=None,
        open_until=None,
    )
    return replace(plain, **fields)


def rotated(until: datetime) -> Webhook:
    return webhook(previous_secret=OLD, previous_secret_until=until)


def headers_of(
    one: Webhook, body: bytes = BODY, now: datetime | None = None, **call: Any
) -> dict[str, str]:
    """Return the headers as a receiver sees them, names in lower case."""
    call = {"position": 1042, "attempt": 3} | call
    now_s = (now or datetime.now(UTC)).timestamp()  # a verifier takes what is of its own time
    pairs = Signer(one).headers(ID, body, now_s, **call)
    named = {name.decode("ascii").lower(): value.decode("ascii") for name, value in pairs}
    assert len(named) == len(pairs), "a name stands twice"
    return named


def bridge_accepts(headers: dict[str, str], body: bytes, *secrets: str) -> bool:
    """Verify as a handler that was written for Bridge, from its documentation alone."""
    expected = [
        hmac.new(secret.encode("utf-8"), body, "sha256").hexdigest().upper() for secret in secrets
    ]
    for part in headers["bridgeapi-signature"].split(","):
        scheme, _, value = part.strip().partition("=")
        if scheme == "v1" and any(hmac.compare_digest(value, known) for known in expected):
            return True
    return False


def standard_accepts(headers: dict[str, str], body: bytes, secret: str) -> bool:
    try:
        standardwebhooks.Webhook(secret).verify(body, headers, json_parse=False)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


def test_all_headers_and_nothing_else() -> None:
    one = webhook(headers={"X-Api-Key": "k y", "Authorization": "Bearer t"})
    headers = headers_of(one, now=NOW)
    signed = f"{ID}.{int(NOW.timestamp())}.".encode() + BODY
    key = base64.b64decode(CURRENT.removeprefix(SECRET_PREFIX))
    assert headers == {
        "content-type": "application/json",
        "user-agent": f"Causeway/{__version__}",
        "bridgeapi-signature": "v1="
        + hmac.new(CURRENT.encode(), BODY, "sha256").hexdigest().upper(),
        "webhook-id": ID,
        "webhook-timestamp": str(int(NOW.timestamp())),
        "webhook-signature": "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode(),
        "causeway-position": "1042",
        "causeway-attempt": "3",
        "x-api-key": "k y",
        "authorization": "Bearer t",
    }


def test_a_test_has_no_position() -> None:
    headers = headers_of(webhook(), TEST_EVENT, position=None, attempt=1)
    assert "causeway-position" not in headers
    assert headers["causeway-attempt"] == "1"
    assert bridge_accepts(headers, TEST_EVENT, CURRENT)
    assert standard_accepts(headers, TEST_EVENT, CURRENT)


@given(body=st.text().map(str.encode))
def test_both_verifiers_accept_any_body_and_no_other_one(body: bytes) -> None:
    headers = headers_of(webhook(), body)
    assert bridge_accepts(headers, body, CURRENT)
    assert standard_accepts(headers, body, CURRENT)
    assert not bridge_accepts(headers, body + b" ", CURRENT)
    assert not standard_accepts(headers, body + b" ", CURRENT)
    assert not bridge_accepts(headers, body, OLD)
    assert not standard_accepts(headers, body, OLD)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
def test_the_standard_signature_covers_id_and_time(name: str) -> None:
    headers = headers_of(webhook())
    altered = headers | {name: headers[name][:-1] + ("1" if headers[name][-1] != "1" else "2")}
    assert not standard_accepts(altered, BODY, CURRENT)


def test_an_eight_digit_link_moved_into_the_time_is_refused_as_stale() -> None:
    """The id's full stop shifts nothing: `1042` and `99999999` with the rest as the body."""
    stamp = int(NOW.timestamp())
    pairs = Signer(webhook()).headers("1042.99999999", BODY, stamp, position=1, attempt=1)
    headers = {name.decode().lower(): value.decode() for name, value in pairs}
    shifted = headers | {"webhook-id": "1042", "webhook-timestamp": "99999999"}
    assert not standard_accepts(shifted, f"{stamp}.".encode() + BODY, CURRENT)


def test_during_a_rotation_who_has_either_secret_accepts() -> None:
    # Not `NOW`, which is when this file was read: a run may be as long as that.
    headers = headers_of(rotated(datetime.now(UTC) + timedelta(hours=1)))
    assert headers["bridgeapi-signature"].count("v1=") == 2
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (CURRENT, OLD):
        assert bridge_accepts(headers, BODY, secret)
        assert standard_accepts(headers, BODY, secret)


def test_a_prepared_signer_stops_signing_with_the_old_secret_at_its_end() -> None:
    signer = Signer(rotated(NOW + timedelta(hours=1)))
    until = (NOW + timedelta(hours=1)).timestamp()
    for now_s, count in ((until - 0.001, 2), (until, 1), (until + 1e6, 1)):
        pairs = dict(signer.headers(ID, BODY, now_s, position=1, attempt=1))
        assert pairs[b"BridgeApi-Signature"].count(b"v1=") == count
        assert pairs[b"webhook-signature"].count(b"v1,") == count


def test_secrets_at_a_moment_are_one_or_two_the_current_first() -> None:
    until = NOW + timedelta(hours=24)
    one = rotated(until)
    assert one.secrets(NOW) == (CURRENT, OLD)
    assert one.secrets(until) == (CURRENT,)
    assert webhook().secrets(NOW) == (CURRENT,)


def test_a_webhook_without_its_secret_is_never_signed_for() -> None:
    unreadable = webhook(secret="", unreadable="CAUSEWAY_SECRET_KEY lacks the key")
    with pytest.raises(SecretUnreadable, match="lacks the key"):
        Signer(unreadable)
    with pytest.raises(SecretUnreadable):
        unreadable.secrets(NOW)


def test_no_repr_shows_a_secret() -> None:
    shown = repr(rotated(NOW)) + repr(
        webhook(headers={"X-Api-Key": "hunter2"}, url="https://u/?t=x")
    )
    for secret in (CURRENT, OLD, "hunter2", "t=x"):
        assert secret not in shown
