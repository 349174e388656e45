"""Whoever knows where the log ends: the tail of either kind, or `Head` where none reads the log."""

from typing import Protocol


class Follower(Protocol):
    """What the state of a process is told from."""

    @property
    def is_damaged(self) -> bool: ...

    def head(self) -> int | None: ...

    def behind_s(self) -> float: ...
