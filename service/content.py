"""The contents of Bridge's documented events, as types. Pure; for clients.

    if (refreshed := content(event, ItemRefreshed)) is not None:
        print(refreshed["item_id"], refreshed.get("status_code"))

A type says what Bridge documents and checks nothing: Bridge may add fields, and `NotRequired` are
those that older versions of its API leave out. Money is a `Decimal`, or an `int` if Bridge wrote no
fraction: each digit as it came.
"""

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NotRequired, TypedDict, TypeVar, cast

from service.filter import topic_of
from service.received import Event

T = TypeVar("T")
Money = Decimal | int


class ItemCreated(TypedDict):
    """A user began to add a bank."""

    item_id: int
    user_uuid: NotRequired[str]


class ItemRefreshed(TypedDict):
    """A refresh ended, well (`status_code` 0) or not (402 wrong credentials, 1010 SCA, ...)."""

    item_id: int
    user_uuid: NotRequired[str]
    status_code: NotRequired[int]
    status_code_info: NotRequired[str]
    full_refresh: NotRequired[bool]
    refresh_trigger: NotRequired[str]  # connect, api, scheduler
    account_types: NotRequired[str | list[str]]
    authentication_expires_at: NotRequired[str | None]


class ItemDeleted(TypedDict):
    """A bank connection is gone."""

    item_id: int


class AccountCreated(TypedDict):
    """The bank reports a new account."""

    account_id: int
    item_id: int
    user_uuid: NotRequired[str]
    balance: NotRequired[Money]


class AccountUpdated(AccountCreated):
    """An account has a new balance or new transactions."""

    nb_new_transactions: NotRequired[int]
    nb_updated_transactions: NotRequired[int]
    nb_deleted_transactions: NotRequired[int]


class AccountDeleted(TypedDict):
    """The bank no longer reports the account; an update may still follow."""

    account_id: int
    item_id: int
    user_uuid: NotRequired[str]


class UserDeleted(TypedDict):
    """A user was erased on his request."""

    user_uuid: str


class Payment(TypedDict, total=False):
    """Something happened to a payment, or to the link to one."""

    payment_transaction_id: str
    payment_request_id: str
    payment_link_id: str
    client_reference: str
    status: str
    status_reason: str | None
    amount: Money
    label: str


TYPES: Mapping[str, type] = MappingProxyType(
    {
        "item.created": ItemCreated,
        "item.refreshed": ItemRefreshed,
        "item.deleted": ItemDeleted,
        "item.account.created": AccountCreated,
        "item.account.updated": AccountUpdated,
        "item.account.deleted": AccountDeleted,
        "user.deleted": UserDeleted,
        "payment.transaction.created": Payment,
        "payment.transaction.updated": Payment,
        "payment.link.updated": Payment,
    }
)


def content(event: Event[Any], kind: type[T]) -> T | None:
    """Return the event's content if its type is one that `kind` documents, else None.

    The names of Bridge's API 2019 count as today's. Raises ValueError for a body without a content.
    """
    if TYPES.get(topic_of(event.type)) is not kind:
        return None
    body = event.json()
    if not isinstance(body, dict) or not isinstance(body.get("content"), dict):
        raise ValueError(f"the body of the event {event.id} has no content")
    return cast(T, body["content"])
