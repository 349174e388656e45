"""Bridge's webhook signature: check the header of a call, sign one in the same way.

Pure. `BridgeApi-Signature: v1=<HEX>[,v1=<HEX>]`, HMAC-SHA256 over the raw body, keyed with the
secret's UTF-8 text. Only the scheme `v1` counts, so that nobody can downgrade; two parts appear for
24 hours after a secret was changed. There is no timestamp: the log's duplicate rule is the defence
against replays.
"""

import hmac
from collections.abc import Sequence

HEADER = "BridgeApi-Signature"
_SCHEME = "v1="
_MAX_PARTS = 10  # Bridge sends two at most; an attacker's header must not cost more than a few


def sign(body: bytes, secrets: Sequence[str]) -> str:
    """Return the header's value for `body`: one `v1=` part for each secret, in their order."""
    return ",".join(f"{_SCHEME}{_digest(body, secret).hex().upper()}" for secret in secrets)


def matching_secret(body: bytes, header: str, secrets: Sequence[str]) -> int | None:
    """Return the index of the first of `secrets` that signed `body`, or None if none did.

    Any part of `header` may match any secret. Hex case and white space around parts do not matter;
    other schemes are ignored. Comparison takes constant time for each pair.
    """
    claims = [
        claim for part in header.split(",", _MAX_PARTS)[:_MAX_PARTS] if (claim := _claim(part))
    ]
    for index, secret in enumerate(secrets):
        expected = _digest(body, secret)
        if any(hmac.compare_digest(expected, claim) for claim in claims):
            return index
    return None


def _digest(body: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode(), body, "sha256")


def _claim(part: str) -> bytes | None:
    """Return the digest that a header's part claims, or None if it is not a `v1` part."""
    part = part.strip(" \t")
    if not part.startswith(_SCHEME):
        return None
    digits = part.removeprefix(_SCHEME)
    # bytes.fromhex skips white space between digits: only the exact 64 digits are a claim.
    if len(digits) != 64 or not digits.isascii() or not digits.isalnum():
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None
