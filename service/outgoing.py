"""The headers of a delivery: signed as Bridge signs, and as Standard Webhooks demands.

Pure. Code that was written for Bridge verifies `BridgeApi-Signature`, keyed with the whole text
of the secret. A library for https://www.standardwebhooks.com verifies `webhook-signature` over
`webhook-id`, `webhook-timestamp` and the body, keyed with the bytes that the secret is the base64
of. For 24 hours after a rotation both have a part for the old secret, too.
"""

import hmac
from base64 import b64decode, b64encode

from service import __version__
from service.signature import HEADER, sign
from service.webhook_value import SECRET_PREFIX, Webhook

Headers = list[tuple[bytes, bytes]]

_BRIDGE = HEADER.encode()
_FIXED = (
    (b"Content-Type", b"application/json"),
    (b"User-Agent", f"Causeway/{__version__}".encode()),
)


class Signer:
    """Makes the headers for one webhook; what is the same for each delivery is made once."""

    __slots__ = ("_custom", "_keys", "_previous_until_s", "_secrets")

    def __init__(self, webhook: Webhook) -> None:
        """Raises SecretUnreadable: a webhook without its secret must not be called at all."""
        self._secrets = webhook.all_secrets()
        self._keys = [b64decode(secret.removeprefix(SECRET_PREFIX)) for secret in self._secrets]
        until = webhook.previous_secret_until
        self._previous_until_s = 0.0 if until is None else until.timestamp()
        self._custom = [
            (name.encode("ascii"), value.encode("ascii")) for name, value in webhook.headers.items()
        ]

    def headers(
        self,
        message_id: str,
        body: bytes,
        now_s: float,
        *,
        position: int | None,
        attempt: int,
        traceparent: bytes | None = None,
    ) -> Headers:
        """Return the headers of one attempt at `now_s` (Unix time); `position` None: a test.

        `message_id` is ours and has a fixed form, so that its full stop moves nothing into the
        signed timestamp that a verifier would take: eight digits of it are a day of 1970.
        """
        count = 2 if now_s < self._previous_until_s else 1
        identity, moment = message_id.encode("ascii"), b"%d" % now_s
        signed = b"%b.%b.%b" % (identity, moment, body)
        parts = [
            b"v1," + b64encode(hmac.digest(key, signed, "sha256")) for key in self._keys[:count]
        ]
        made = [
            *_FIXED,
            (_BRIDGE, sign(body, self._secrets[:count]).encode("ascii")),
            (b"webhook-id", identity),
            (b"webhook-timestamp", moment),
            (b"webhook-signature", b" ".join(parts)),
            (b"Causeway-Attempt", b"%d" % attempt),
        ]
        if position is not None:
            made.append((b"Causeway-Position", b"%d" % position))
        if traceparent is not None:  # not signed: proxies on the way may put their own span in it
            made.append((b"traceparent", traceparent))
        return made + self._custom
