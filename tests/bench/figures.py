"""A figure: what was measured, its value and spread, and whether it meets its target. Pure."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

Turn = Callable[[int], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that a figure is held against."""

    bound: float
    is_minimum: bool

    def is_met(self, value: float) -> bool:
        """True if `value` keeps the bound."""
        return value >= self.bound if self.is_minimum else value <= self.bound


def at_least(bound: float) -> Target:
    """A target that larger values meet."""
    return Target(bound, is_minimum=True)


def at_most(bound: float) -> Target:
    """A target that smaller values meet."""
    return Target(bound, is_minimum=False)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a bench's table. `low` and `high` are the extremes over the rounds."""

    what: str
    value: float
    unit: str
    low: float
    high: float
    target: Target | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        return None if self.target is None else self.target.is_met(self.value)


def figure(what: str, unit: str, values: Sequence[float], target: Target | None = None) -> Figure:
    """Return the median of `values` (at least one) as a figure."""
    return Figure(what, median(values), unit, min(values), max(values), target)


def ratio(
    what: str, ours: Sequence[float], theirs: Sequence[float], target: Target | None = None
) -> Figure:
    """Return the median of the ratios of each round: what disturbed a round disturbed both."""
    pairs = zip(ours, theirs, strict=True)
    return figure(what, "x", [our / their for our, their in pairs], target)


def percentiles(what: str, seconds: Iterable[float]) -> list[Figure]:
    """Return p50 and p99 of durations, in milliseconds."""
    sorted_ms = sorted(second * 1000 for second in seconds)
    cuts = quantiles(sorted_ms, n=100, method="inclusive")
    return [
        Figure(f"{what}, p{p}", cuts[p - 1], "ms", sorted_ms[0], sorted_ms[-1]) for p in (50, 99)
    ]


async def alternate(rounds: int, turns: Mapping[str, Turn]) -> dict[str, list[float]]:
    """Give each contender its turn, `rounds` times over; return their values by name."""
    values: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            values[name].append(await turn(number))
    return values
