"""What Bridge's `status_code` of an item means. Pure.

The codes and their senses are those of Bridge's documentation, "Items statuses"
(https://docs.bridgeapi.io/docs/items-status); the words are ours. Bridge may add some: an unknown
code is said to be one.
"""

from dataclasses import dataclass
from types import MappingProxyType

import orjson

GOOD, WAITING, BROKEN, UNKNOWN = "good", "waiting", "broken", "unknown"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code says of the connection, and how bad that is: GOOD, WAITING, BROKEN, UNKNOWN."""

    text: str
    level: str


_MEANINGS = MappingProxyType(
    {
        0: Meaning("ok: the last refresh went well", GOOD),
        -2: Meaning("just added: its first refresh has not ended", WAITING),
        -3: Meaning("credentials just changed: the refresh has not ended", WAITING),
        402: Meaning("wrong credentials: the user must enter them again", BROKEN),
        429: Meaning(
            "the user must do something in the bank's own site (terms, activation)", BROKEN
        ),
        430: Meaning("the user must change the password in the bank's own site", BROKEN),
        1003: Meaning("could not be refreshed: the bank did not answer as expected", BROKEN),
        1005: Meaning("this kind of account is not supported", BROKEN),
        1007: Meaning("refreshing is switched off for now", WAITING),
        1009: Meaning("the balance changed, but no new transaction was found", WAITING),
        1010: Meaning("strong authentication needed: the user must confirm with the bank", BROKEN),
        1099: Meaning("is being moved to another bank", WAITING),
        1100: Meaning("business accounts were found: they must be validated", BROKEN),
    }
)


def meaning(code: object) -> Meaning:
    """Return what a `status_code` means."""
    known = _MEANINGS.get(code) if isinstance(code, int) and not isinstance(code, bool) else None
    return known or Meaning("unknown code", UNKNOWN)


def status_of(body: bytes) -> tuple[object, object]:
    """Return `status_code` and `status_code_info` of an event's body; None where it has none."""
    content = orjson.loads(body).get("content")
    if not isinstance(content, dict):
        return None, None
    return content.get("status_code"), content.get("status_code_info")
