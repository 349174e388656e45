"""What a fault is."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

from tests.chaos.schedule import Planned
from tests.chaos.world import World

Target = Literal["replica", "database", "network"]
Act = Callable[[World, Planned], AbstractAsyncContextManager[None]]


def nothing() -> str | None:
    """Nothing is missing."""
    return None


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break the world.

    `act` breaks it where its block begins and heals it where that ends, also when cancelled. What
    it does is said by `what`, and what must hold nevertheless by `promise`. `missing` names what
    this machine lacks for it.
    """

    name: str
    what: str
    promise: str
    target: Target
    hold_s: tuple[float, float]
    act: Act
    missing: Callable[[], str | None] = nothing
