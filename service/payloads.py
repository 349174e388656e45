"""What Bridge sends: an endless supply of its documented events, to try and to measure with.

Pure: the same seed and clock give the same bytes. The bodies vary as Bridge's do (order of the
keys, white space, escapes) and hold what breaks careless receivers: ids beyond 32 bits, money that
no double can hold, text beyond ASCII. All are distinct; the always equal `TEST_EVENT` is apart.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from random import Random
from types import MappingProxyType

# "Send a test" in Bridge's dashboard sends exactly this (BRIDGE.md).
TEST_EVENT = (
    b'{"content":{"item_id":1234567890,"status":0,'
    b'"user_uuid":"9a95b38f-f98b-417a-988b-9d0d584893e7"},'
    b'"timestamp":1611681789,"type":"TEST_EVENT"}'
)

_ITEM = "item_id user_uuid"
_REFRESH = (
    f"{_ITEM} status_code status_code_info full_refresh refresh_trigger account_types "
    "authentication_expires_at"
)
_ACCOUNT = f"account_id {_ITEM} balance currency_code label"
_UPDATE = f"{_ACCOUNT} nb_new_transactions nb_updated_transactions nb_deleted_transactions"
_PAYMENT = "payment_transaction_id payment_request_id client_reference amount label status"
_LINK = "payment_link_id payment_request_id client_reference status status_reason"
_TRANSFER = "transfer_id item_id account_id user_uuid amount currency_code label status"

# Type: how often among 100, and the fields of its content.
EVENTS = MappingProxyType(
    {
        "item.account.updated": (42, _UPDATE),
        "item.refreshed": (18, _REFRESH),
        "item.created": (6, _ITEM),
        "item.account.created": (6, _ACCOUNT),
        "item.account.deleted": (2, f"account_id {_ITEM}"),
        "item.deleted": (2, "item_id"),
        "user.deleted": (2, "user_uuid"),
        "payment.transaction.created": (5, _PAYMENT),
        "payment.transaction.updated": (5, f"{_PAYMENT} status_reason"),
        "payment.link.updated": (2, _LINK),
        "transfer.created": (1, _TRANSFER),
        "transfer.updated": (1, _TRANSFER),
        "ITEM_CREATED": (1, _ITEM),
        "ITEM_REFRESHED": (2, _REFRESH),
        "ACCOUNT_CREATED": (1, _ACCOUNT),
        "ACCOUNT_UPDATED": (4, _UPDATE),
    }
)

_LABELS = tuple(
    json.dumps(label, ensure_ascii=escaped)
    for label in (
        "Compte chèques €",
        "Livret A · José Ñandú",
        "経費 🏦",
        'Joint "perso"',
        "PEL\t2%",
    )
    for escaped in (False, True)
)
_MONEY = ("0.00", "-0.05", "1678.10", "90071992547409931.07", "0.1", "1e3", "-12.340")
_WORDS = MappingProxyType(
    {
        "full_refresh": ("true", "false"),
        "refresh_trigger": ('"connect"', '"api"', '"scheduler"'),
        "account_types": ('"payment"', '"all"', '["payment","savings"]'),
        "authentication_expires_at": ('"2027-02-08T12:23:08.323Z"', "null"),
        "currency_code": ('"EUR"', '"GBP"'),
        "status": ('"CREA"', '"PDNG"', '"ACSC"', '"RJCT"'),
        "status_reason": ("null", '"AC04"', '"MS03"'),
        "label": _LABELS,
    }
)

_STATUSES = (("0", '"ok"'),) * 4 + (("402", '"wrong_credentials"'), ("1010", '"sca_required"'))

_USERS = 4096  # a user comes again after so many events, when the clock has moved: all are distinct
_STRIDE = 1597  # odd, so that every user has its turn
_ACCOUNTS = 3
_FIRST_ITEM = 2**32
_FIRST_MS = 1_767_225_600_000  # 2026-01-01
_PRETTY = 0.05
_SPACED = 0.10


@dataclass(frozen=True, slots=True)
class _Who:
    """One user with one bank connection, as JSON texts."""

    user_uuid: str
    item_id: str
    account_ids: tuple[str, ...]
    status: tuple[str, str]


def events(seed: int = 0, now_ms: Callable[[], int] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield (type, body) for ever. `now_ms` gives the timestamps in Unix milliseconds.

    By default time begins with 2026 and steps by one: the same seed then gives the same bytes. All
    bodies are distinct as long as the clock moves within 4096 events.
    """
    rng = Random(seed)  # noqa: S311 - it imitates, it protects nothing
    clock = count(_FIRST_MS).__next__ if now_ms is None else now_ms
    people = [_person(rng) for _ in range(_USERS)]
    types = tuple(EVENTS)
    weights = tuple(accumulate(share for share, _ in EVENTS.values()))
    fields = {type_: tuple(names.split()) for type_, (_, names) in EVENTS.items()}
    for n in count():
        type_ = rng.choices(types, cum_weights=weights)[0]
        who = people[n * _STRIDE % _USERS]
        content = [(name, _value(name, who, rng)) for name in fields[type_]]
        yield type_, _body(type_, content, clock(), rng)


def _person(rng: Random) -> _Who:
    item = _FIRST_ITEM + rng.getrandbits(44)
    accounts = tuple(str(item * 4 + k) for k in range(_ACCOUNTS))
    return _Who(_uuid(rng), str(item), accounts, rng.choice(_STATUSES))


def _value(name: str, who: _Who, rng: Random) -> str:
    """Return a field's value as JSON text."""
    if name in _WORDS:
        return rng.choice(_WORDS[name])
    match name:
        case "item_id":
            return who.item_id
        case "user_uuid":
            return who.user_uuid
        case "account_id":
            return rng.choice(who.account_ids)
        case "status_code":
            return who.status[0]
        case "status_code_info":
            return who.status[1]
        case "balance" | "amount":
            return _money(rng)
        case "client_reference":
            return f'"ref-{rng.getrandbits(40)}"'
        case "transfer_id":
            return str(_FIRST_ITEM + rng.getrandbits(40))
    return str(int(rng.random() * 40)) if name.startswith("nb_") else _uuid(rng)


def _money(rng: Random) -> str:
    if rng.random() < 0.1:
        return rng.choice(_MONEY)
    cents = rng.getrandbits(22)
    return f"{cents // 100}.{cents % 100:02d}"


def _uuid(rng: Random) -> str:
    return f'"{uuid.UUID(int=rng.getrandbits(128), version=4)}"'


def _body(type_: str, content: list[tuple[str, str]], timestamp: int, rng: Random) -> bytes:
    rng.shuffle(content)
    style = rng.random()
    if style < _PRETTY:
        line, comma, colon, end = "\n", ",", ": ", "\n"
    else:
        line, end = "", ""
        comma, colon = (", ", ": ") if style < _PRETTY + _SPACED else (",", ":")
    inner = _object(content, line and line + "    ", line and line + "  ", comma, colon)
    outer = [("content", inner), ("timestamp", str(timestamp)), ("type", f'"{type_}"')]
    rng.shuffle(outer)
    return (_object(outer, line and line + "  ", line, comma, colon) + end).encode()


def _object(members: list[tuple[str, str]], line: str, end: str, comma: str, colon: str) -> str:
    """Return a JSON object; `line` stands before each member, `end` before the last brace."""
    return "{" + (comma.join(f'{line}"{k}"{colon}{v}' for k, v in members)) + end + "}"
