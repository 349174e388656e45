"""Which fault when, for how long, on whom. Pure: the same seed gives the same schedule."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

TOGETHER = 0.35  # of the steps after each fault has had its turn alone
NOMINAL_S = 3.0  # for recovery and a look at all histories, beside the fault itself


class Kind(Protocol):
    """What a schedule must know of a fault."""

    @property
    def target(self) -> str:
        """What it breaks: two faults of one target never overlap."""
        ...

    @property
    def hold_s(self) -> tuple[float, float]:
        """For how long it may be held, at least and at most."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of the schedule: `replica` is whom it strikes, if it strikes a replica."""

    name: str
    hold_s: float
    replica: int
    draw: float  # from 0 to 1, for whatever else the fault may choose


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that begin together, the shorter one inside the longer one."""

    planned: tuple[Planned, ...]

    @property
    def hold_s(self) -> float:
        """How long until all of them are healed."""
        return max(it.hold_s for it in self.planned)


def plan(seed: int, kinds: Mapping[str, Kind], *, within_s: float, replicas: int) -> list[Step]:
    """Return steps that take about `within_s`: each fault once, alone, and then pairs as well.

    The first faults are those that fit; with too little time some of them have no turn.
    """
    chance = random.Random(seed)
    steps: list[Step] = []
    left_s = within_s
    is_first = True
    while True:
        deck = sorted(kinds)
        chance.shuffle(deck)
        while deck:
            step = _draw(chance, deck, kinds, replicas, may_pair=not is_first)
            left_s -= step.hold_s + NOMINAL_S
            if left_s < 0:
                return steps
            steps.append(step)
        is_first = False
        if not kinds:
            return steps


def _draw(
    chance: random.Random,
    deck: list[str],
    kinds: Mapping[str, Kind],
    replicas: int,
    *,
    may_pair: bool,
) -> Step:
    names = [deck.pop()]
    if may_pair and chance.random() < TOGETHER:
        other = next((it for it in deck if kinds[it].target != kinds[names[0]].target), None)
        if other is not None:
            deck.remove(other)
            names.append(other)
    return Step(tuple(_plan_one(chance, name, kinds[name], replicas) for name in names))


def _plan_one(chance: random.Random, name: str, kind: Kind, replicas: int) -> Planned:
    hold_s = round(chance.uniform(*kind.hold_s), 1)
    return Planned(name, hold_s, chance.randrange(replicas), round(chance.random(), 3))


def names(steps: Sequence[Step]) -> list[str]:
    """Return the faults of `steps` in their order."""
    return [planned.name for step in steps for planned in step.planned]
