"""What a reader wants, as the service spells it: parameters of a stream, or a consumer's fields."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from service.filter import topic_of

# A stream's parameter: the field of a consumer's filter, and the value in it.
_FIELDS: dict[str, tuple[str, Callable[[str], str | int]]] = {
    "type": ("types", topic_of),
    "item_id": ("item_ids", int),
    "account_id": ("account_ids", int),
    "user_uuid": ("user_uuids", str.lower),
    "source": ("sources", str),
}

Parameters = tuple[tuple[str, str], ...]


def filters(
    types: Iterable[str] = (),
    item_ids: Iterable[int] = (),
    account_ids: Iterable[int] = (),
    user_uuids: Iterable[str] = (),
    sources: Iterable[str] = (),
) -> Parameters:
    """Return the query parameters of a filter: any value within a field, and all the fields."""
    if isinstance(types, str) or isinstance(user_uuids, str) or isinstance(sources, str):
        raise TypeError("a filter takes a sequence of strings, not one string")
    fields: tuple[tuple[str, Iterable[str | int]], ...] = (
        ("type", types),
        ("item_id", item_ids),
        ("account_id", account_ids),
        ("user_uuid", user_uuids),
        ("source", sources),
    )
    return tuple((name, str(value)) for name, values in fields for value in values)


def filter_body(parameters: Parameters) -> dict[str, list[Any]]:
    """Return the same filter as a consumer's: sorted, types under today's names."""
    body: dict[str, set[Any]] = {}
    for name, value in parameters:
        field, convert = _FIELDS[name]
        body.setdefault(field, set()).add(convert(value))
    return {field: sorted(values) for field, values in body.items()}


def beginning(
    after: str | int | None, from_start: bool, since: datetime | str | None
) -> Parameters:
    """Return the parameter that says where to begin; none for the next event.

    Raises ValueError for two beginnings, or one that cannot be understood.
    """
    if sum((after is not None, from_start, since is not None)) > 1:
        raise ValueError("give only one of after, from_start and since")
    if after is not None:
        return (("after", str(after)),)
    if from_start:
        return (("from", "start"),)
    return () if since is None else (("since", moment(since)),)


def moment(since: datetime | str) -> str:
    """Return a time as the service reads it. Raises ValueError for one without a time zone."""
    if isinstance(since, str):
        return since
    if since.tzinfo is None:
        raise ValueError("since must be a datetime with a time zone")
    return since.isoformat()
