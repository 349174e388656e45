"""Whoever knows where the log ends: a tail of either kind, or `Head` where none reads the log."""

from typing import Protocol


class Follower(Protocol):
    """What the state of a process is told from."""

    @property
    def is_damaged(self) -> bool: ...

    def head(self) -> int | None: ...

    def behind_s(self) -> float: ...


class WindowFollower(Follower, Protocol):
    """A tail: it fills the window. `Tail` says what each of these promises."""

    @property
    def has_begun(self) -> bool: ...

    def lag(self) -> int: ...

    def hear(self, head: int) -> None: ...

    async def run(self) -> None: ...
