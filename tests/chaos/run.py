"""One run: begin, fault by fault, the end; after each a look at everything that was seen."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from service.db import Connection
from tests.chaos.callbacks import take_calls, take_states
from tests.chaos.checker import Violation, check
from tests.chaos.fault import Fault
from tests.chaos.history import Row
from tests.chaos.recovery import Recovery, recovery
from tests.chaos.schedule import Planned, Step
from tests.chaos.world import World, audit, find_leaks, open_world, stop_replicas

BEGIN_S = 240.0
RECOVER_S = 60.0
SETTLE_S = 120.0
LOOK_S = 0.25
BEGIN_EVENTS = 50
_ROWS = """
SELECT position, source, type, digest, sha256(body) AS body_digest, link
FROM causeway.event
WHERE position > $1
ORDER BY position
"""


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was done: how long it was held, how all recovered, what was broken by then."""

    step: Step
    held_s: float
    recovery: Recovery
    violations: Sequence[Violation]


@dataclass(slots=True)
class Outcome:
    """All that a run has shown. `final` are the violations that only the end could show."""

    done: list[Done] = field(default_factory=list)
    final: list[Violation] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def violations(self) -> list[Violation]:
        """All of them, each once."""
        found = [it for done in self.done for it in done.violations]
        return list(dict.fromkeys([*found, *self.final]))


Tell = Callable[[str], None]


async def run(
    seed: int,
    steps: Sequence[Step],
    faults: Mapping[str, Fault],
    *,
    per_s: float,
    within_s: float,
    tell: Tell,
) -> Outcome:
    """Run `steps` on a world of its own; those that begin after `within_s` are left out."""
    outcome = Outcome()
    async with open_world(seed, per_s) as world:
        began_at = time.monotonic()
        await _begin(world)
        tell(f"all is up, {len(world.history.rows)} events")
        known: set[Violation] = set()
        for step in steps:
            if time.monotonic() - began_at > within_s:
                break
            done = await _do(world, step, faults, known)
            known.update(done.violations)
            outcome.done.append(done)
            tell(_line(done))
        tell("to the end")
        await _end(world)
        outcome.final = [it for it in check(world.history, is_final=True) if it not in known]
        outcome.figures = _figures(world, time.monotonic() - began_at)
    return outcome


async def _begin(world: World) -> None:
    """Wait until events come to everybody."""
    began_at = time.monotonic()
    async with asyncio.timeout(BEGIN_S):
        while not _recovery(world, began_at, began_at).is_complete:
            await asyncio.sleep(LOOK_S)


async def _do(world: World, step: Step, faults: Mapping[str, Fault], known: set[Violation]) -> Done:
    began_at = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for planned in step.planned:
            group.create_task(_hold(world, faults[planned.name], planned))
    healed_at = time.monotonic()
    while not (found := _recovery(world, began_at, healed_at)).is_complete:
        if time.monotonic() - healed_at > RECOVER_S:
            break
        await asyncio.sleep(LOOK_S)
    violations = [it for it in await _look(world) if it not in known]
    if not found.is_complete:
        names = " and ".join(planned.name for planned in step.planned)
        violations.append(Violation("not_recovered", f"{RECOVER_S:.0f} s after {names}: {found}"))
    return Done(step, healed_at - began_at, found, violations)


async def _hold(world: World, fault: Fault, planned: Planned) -> None:
    async with fault.act(world, planned):
        await asyncio.sleep(planned.hold_s)


def _recovery(world: World, began_at: float, healed_at: float) -> Recovery:
    now = time.monotonic()
    return recovery(world.history, len(world.replicas), began_at, healed_at, now)


async def _look(world: World) -> list[Violation]:
    """Read what is new in the log, and judge all histories so far."""
    rows = world.history.rows
    async with world.session() as owner:
        rows += await _rows(owner, rows[-1].position if rows else 0)
    world.history.ends += [text for replica in world.replicas for text in _taken(replica.ends)]
    return check(world.history, is_final=False)


def _taken(texts: list[str]) -> list[str]:
    taken = list(texts)
    texts.clear()
    return taken


async def _rows(owner: Connection, after: int) -> list[Row]:
    return [Row(**row) for row in await owner.fetch(_ROWS, after)]


async def _end(world: World) -> None:
    """Let everybody come to the end, stop the service, and take all the histories."""
    history = world.history
    world.bridge.is_over = True
    for subscription in world.subscriptions:
        subscription.is_hurried = True
    try:
        async with asyncio.timeout(SETTLE_S):
            while not await _is_settled(world):
                await asyncio.sleep(2 * LOOK_S)
    except TimeoutError:
        pass  # whatever is missing is named by the checker
    history.ends += await stop_replicas(world.replicas)
    async with world.session() as owner:
        history.rows = await _rows(owner, 0)
        await take_states(history.callbacks, owner)
    received = await asyncio.to_thread(world.receiver.requests)
    take_calls(history.callbacks, received)
    history.leaks = find_leaks(world)
    history.audit = await audit(world.postgres)


async def _is_settled(world: World) -> bool:
    """Tell whether everybody has got everything that there is."""
    history = world.history
    if world.bridge.waiting:
        return False
    async with world.session() as owner:
        rows = history.rows
        rows += await _rows(owner, rows[-1].position if rows else 0)
        await take_states(history.callbacks, owner)
    for it in history.subscribers:
        if len(it.seen) < sum(it.wanted.matches(row) for row in rows):
            return False
    for name in {shard.consumer for shard in history.shards}:
        shards = [shard for shard in history.shards if shard.consumer == name]
        got = {handled.position for shard in shards for handled in shard.handled}
        if len(got) < sum(shards[0].wanted.matches(row) for row in rows):
            return False
    return all(
        list(callback.states.values()).count("delivered")
        >= sum(callback.wanted.matches(row) for row in rows)
        for callback in history.callbacks
        if callback.must_finish
    )


def _line(done: Done) -> str:
    names = " + ".join(f"{it.name} ({it.hold_s:.1f} s)" for it in done.step.planned)
    found = done.recovery
    times = (found.taken_s, found.replicas_s, found.streams_s, found.consumers_s)
    words = ", ".join("-" if it is None else f"{it:.2f}" for it in times)
    broken = f"; {len(done.violations)} VIOLATIONS" if done.violations else ""
    return f"{names}: no 200 for {found.gap_s:.1f} s; back after {words} s{broken}"


def _figures(world: World, took_s: float) -> dict[str, str]:
    history = world.history
    answers = [answer for event in history.sent for answer in event.answers]
    refused = sum(answer.status == 503 for answer in answers)
    broken = sum(answer.status == 0 for answer in answers)
    return {
        "time": f"{took_s:.0f} s",
        "events in the log": f"{len(history.rows):,}",
        "calls of Bridge": f"{len(answers):,}, {refused:,} answered 503, {broken:,} without answer",
        "streams opened": str(sum(it.connections for it in history.subscribers)),
        "events given to consumers": f"{sum(len(it.handled) for it in history.shards):,}",
        "calls of callbacks": f"{sum(len(it.calls) for it in history.callbacks):,}",
    }
