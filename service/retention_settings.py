"""The settings of retention and erasure: names that a user sees, defaults, units and checks.

A pure value. Unset means for ever: nothing leaves the log unless somebody said so.
"""

import re
from typing import Any

from pydantic import BaseModel, Field, field_validator

MAX_DAYS = 36_500  # a century: more is a slip, and past what a time span can hold
_SIZE = re.compile(r"([0-9]{1,18})\s*([kMGT]?)B?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Return the bytes that `500GB`, `1TB` or `1000` mean. Raises ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"a size such as 500GB was expected, not {text[:32]!r}")
    return int(match[1]) * _UNITS[match[2]]


class RetentionSettings(BaseModel):
    """What `causeway prune` and the erasure of users are told."""

    retention_s: int | None = Field(
        None,
        ge=2 * 86400,
        le=MAX_DAYS * 86400,
        validation_alias="CAUSEWAY_RETENTION_S",
        description="`causeway prune` takes out what is older. Unset: no age is too old.",
    )
    retention_bytes: int | None = Field(
        None,
        ge=1024 * 1024,
        validation_alias="CAUSEWAY_RETENTION_BYTES",
        description="`causeway prune` takes out the oldest of a log that is larger on disk, as "
        "`500GB` or in bytes. Unset: no size is too large.",
    )
    erase_on_user_deleted: bool = Field(
        False,
        validation_alias="CAUSEWAY_ERASE_ON_USER_DELETED",
        description="`true` erases a user's events after Bridge's `user.deleted`.",
    )
    erase_delay_s: int = Field(
        7 * 86400,
        ge=0,
        le=MAX_DAYS * 86400,
        validation_alias="CAUSEWAY_ERASE_DELAY_S",
        description="How long after `user.deleted`: applications react to it first.",
    )

    @field_validator("retention_bytes", mode="before")
    @classmethod
    def _parse_size(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value
