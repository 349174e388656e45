"""What the forms of the webhooks' pages ask for, as the JSON that the API takes: one set of rules.

Pure. Only what a form can get wrong and JSON cannot is refused here.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from service.dashboard.door import Form, one
from service.errors import BadRequest

# The picker: a group, and its events with what they tell.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "Items": {
        "item.created": "a user began to add a bank",
        "item.refreshed": "a refresh ended, well or not",
        "item.deleted": "a bank connection is gone",
    },
    "Accounts": {
        "item.account.created": "a new account",
        "item.account.updated": "a balance or transactions changed",
        "item.account.deleted": "the bank reports it no longer",
    },
    "Payments": {
        "payment.transaction.created": "a payment began",
        "payment.transaction.updated": "its status changed",
        "payment.link.updated": "a payment link changed",
        "transfer.created": "of an older API",
        "transfer.updated": "of an older API",
    },
    "Users and tests": {
        "user.deleted": "erased on the user's request",
        "TEST_EVENT": "Bridge's own test",
    },
}
KNOWN = frozenset(name for group in GROUPS.values() for name in group)


def as_wish(form: Form) -> bytes:
    """Return a new webhook's form as the body of `POST /api/webhooks`."""
    fields = _settings(form) | {
        "application": one(form, "application").strip() or "default",
        "headers": parse_headers(one(form, "headers")),
        "ordered": "ordered" in form,
        "start": _start(form),
    }
    return orjson.dumps(fields)


def as_change(form: Form) -> bytes:
    """Return the settings' form as the body of a PATCH; the headers stay unless told otherwise."""
    fields = _settings(form)
    if one(form, "change_headers"):
        fields["headers"] = parse_headers(one(form, "headers"))
    return orjson.dumps(fields)


def as_start(form: Form) -> bytes:
    """Return where an enabled webhook goes on, as the body of `.../enable`."""
    is_here = one(form, "start") in ("", "here")
    return orjson.dumps({} if is_here else {"start": _start(form)})


def as_replay(form: Form) -> bytes:
    """Return what to send again, as the body of `.../replays`."""
    fields: dict[str, Any] = {"state": one(form, "state")}
    if types := _words(form, "types"):
        fields["types"] = types
    if items := _words(form, "item_ids"):
        fields["item_ids"] = [_number("item_ids", item) for item in items]
    for name in ("from", "until"):
        if text := _moment(one(form, name)):
            fields[name] = text
    if rate := one(form, "rate").strip():
        fields["rate"] = _rate(rate)
    return orjson.dumps(fields)


def parse_headers(text: str) -> dict[str, str]:
    """Return headers that are written one a line, `Name: value`. No message shows a value."""
    headers: dict[str, str] = {}
    for n, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(f"headers: line {n}: `Name: value` was expected")
        if name.strip() in headers:
            raise BadRequest(f"headers: {name.strip()[:64]} stands twice")
        headers[name.strip()] = value.strip()
    return headers


def _settings(form: Form) -> dict[str, Any]:
    types = None if one(form, "events") == "all" else form.get("type", []) + _words(form, "types")
    return {
        "name": one(form, "name").strip() or None,
        "url": one(form, "url").strip(),
        "types": types,
        "sources": _words(form, "sources") or None,
    }


def _start(form: Form) -> str:
    start = one(form, "start")
    return _moment(one(form, "place")) if start == "place" else start


def _moment(text: str) -> str:
    """Return a position or an id as it is; a time as ISO 8601 spells it."""
    return text.strip().replace(" ", "T", 1)


def _words(form: Form, name: str) -> list[str]:
    return one(form, name).replace(",", " ").split()


def _number(name: str, text: str) -> int:
    if not text.removeprefix("-").isdecimal() or len(text) > 19:
        raise BadRequest(f"{name}: {text[:32]!r} is not an integer")
    return int(text)


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"rate: {text[:32]!r} is not a number") from None
