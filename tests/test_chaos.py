"""`make chaos` itself: its schedule, its recovery times, its report, and a short run of it."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from tests.chaos.checker import Violation
from tests.chaos.fault import Fault
from tests.chaos.faults import FAULTS, choose
from tests.chaos.history import Answer, Handled, History, Seen, Sent, Shard, Subscriber
from tests.chaos.recovery import Recovery, longest_gap, recovery
from tests.chaos.replica import children_of
from tests.chaos.report import Told, report
from tests.chaos.run import Done, Outcome, run
from tests.chaos.schedule import Planned, Step, names, plan
from tests.chaos.world import World
from tests.conftest import need_program
from tests.running import ROOT, WITHIN_S
from tests.stored import remove

SEED = 7
PER_S = 20.0
PATIENCE_S = 600.0  # a slow machine is not what a run is to find


def show(text: str) -> None:
    print(text)


# --- the schedule ---


@dataclass(frozen=True, slots=True)
class Kind:
    target: str
    hold_s: tuple[float, float] = (1.0, 3.0)


KINDS = {f"{target}_{n}": Kind(target) for target in ("replica", "database") for n in range(4)}


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    first, again, other = (plan(s, KINDS, within_s=300, replicas=2) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_each_fault_comes_alone_before_any_comes_again_or_with_another() -> None:
    for seed in range(50):
        steps = plan(seed, KINDS, within_s=300, replicas=2)
        first = steps[: len(KINDS)]
        assert sorted(names(first)) == sorted(KINDS)
        assert all(len(step.planned) == 1 for step in first)
        assert any(len(step.planned) == 2 for step in steps)


def test_faults_of_one_target_never_overlap_and_the_time_is_kept() -> None:
    for seed in range(50):
        steps = plan(seed, KINDS, within_s=200, replicas=2)
        assert sum(step.hold_s for step in steps) < 200
        for step in steps:
            targets = [KINDS[planned.name].target for planned in step.planned]
            assert len(set(targets)) == len(targets) <= 2
            for planned in step.planned:
                assert 1.0 <= planned.hold_s <= 3.0
                assert planned.replica in (0, 1)


def test_a_fault_that_this_machine_cannot_do_is_named_and_not_scheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lame = replace(FAULTS["replica_killed"], name="lame", missing=lambda: "it needs root")
    monkeypatch.setattr("tests.chaos.faults.FAULTS", {**FAULTS, "lame": lame})
    faults, skipped = choose(["lame", "replica_ended"])
    assert (list(faults), skipped) == (["replica_ended"], {"lame": "it needs root"})
    with pytest.raises(ValueError, match="no such fault: dragons"):
        choose(["dragons"])


# --- how long it took ---


def taken(at: float, position: int, *, replica: int = 0, took_s: float = 0.1) -> Sent:
    answer = Answer(at - took_s, at, 200, replica, position)
    return Sent("default", "item.created", 1, b"", b"", [answer])


def test_recovery_counts_from_the_heal_to_what_began_after_it() -> None:
    history = History(
        sent=[
            taken(9.0, 1),
            taken(20.05, 2),  # it began before the heal
            taken(21.0, 1, replica=1),  # a retry of an old event proves nothing
            taken(22.0, 3),
        ],
        subscribers=[
            Subscriber("first", seen=[Seen(1, "", b"", 9.1), Seen(3, "", b"", 23.0)]),
            Subscriber("slow", is_slow=True),
        ],
        shards=[Shard("ledger", "0/1", handled=[Handled(3, b"", 1, 1, "", 24.0)])],
    )
    found = recovery(history, 2, began_at=10.0, healed_at=20.0, now=25.0)
    assert replace(found, gap_s=0.0) == Recovery(2.0, 2.0, 3.0, 4.0, gap_s=0.0)
    assert found.gap_s == pytest.approx(10.05)
    assert found.is_complete


def test_who_is_not_back_keeps_the_recovery_open() -> None:
    history = History(sent=[taken(22.0, 3)], subscribers=[Subscriber("first")])
    found = recovery(history, 2, began_at=10.0, healed_at=20.0, now=25.0)
    assert (found.taken_s, found.replicas_s, found.streams_s) == (2.0, None, None)
    assert not found.is_complete


def test_the_longest_gap_counts_both_ends() -> None:
    assert longest_gap([], 1.0, 5.0) == 4.0
    assert longest_gap([2.0, 2.5], 1.0, 5.0) == 2.5
    assert longest_gap([0.0, 4.0, 9.0], 1.0, 5.0) == 3.0


# --- the report ---


def told(**faults: Fault) -> Told:
    return Told(7, "python -m tests.chaos --seed 7", {}, faults, {"disk_full": "not root"}, [])


def done(name: str, *violations: Violation) -> Done:
    step = Step((Planned(name, 1.0, 0, 0.5),))
    return Done(step, 1.0, Recovery(0.5, 0.6, 0.7, None, 2.0), violations)


def test_a_report_says_first_what_was_broken_and_how_to_run_it_again() -> None:
    fault = FAULTS["replica_killed"]
    broken = Violation("lost", "an event | of two\nlines")
    outcome = Outcome([done("replica_killed", broken)], [Violation("audit", "position 3")])
    text = report(told(replica_killed=fault), outcome)
    assert text.index("2 violations") < text.index("python -m tests.chaos --seed 7")
    assert text.index("--seed 7") < text.index("## Faults")
    assert "| lost | an event \\| of two lines | `replica_killed` |" in text
    assert "| audit | position 3 | the end |" in text
    assert "BROKEN (1)" in text
    assert "`disk_full` was skipped: not root" in text


def test_a_report_of_a_good_run_has_every_fault_and_what_there_was_no_time_for() -> None:
    faults = {name: FAULTS[name] for name in ("replica_killed", "postgres_killed")}
    text = report(told(**faults), Outcome([done("replica_killed")]))
    assert "Every promise was kept." in text
    assert "Run it again" not in text
    row = next(line for line in text.splitlines() if line.startswith("| `replica_killed` | 1 |"))
    assert row.endswith("| kept | 2.0 | 0.5 | 0.7 | never |")
    assert "there was no time for `postgres_killed`" in text


# --- a run of it ---


@pytest.fixture
def pgrep() -> str:
    """The program that tells which processes another one has started."""
    return need_program("pgrep")


async def short_run(*chosen: Fault) -> Outcome:
    steps = [Step((Planned(fault.name, fault.hold_s[0], 0, 0.5),)) for fault in chosen]
    faults = {fault.name: fault for fault in chosen}
    return await run(SEED, steps, faults, per_s=PER_S, within_s=PATIENCE_S, tell=show)


@pytest.mark.usefixtures("pgrep")
async def test_a_short_run_keeps_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("RECOVER_S", "SETTLE_S"):
        monkeypatch.setattr(f"tests.chaos.run.{limit}", PATIENCE_S)
    chosen = ("replica_killed", "answer_lost")
    outcome = await short_run(*(FAULTS[name] for name in chosen))
    assert outcome.violations == []
    assert [it.step.planned[0].name for it in outcome.done] == list(chosen)
    assert all(it.recovery.is_complete for it in outcome.done)


@asynccontextmanager
async def _row_removed(world: World, planned: Planned) -> AsyncIterator[None]:
    """Remove a row whose position Bridge was told, and that another one follows."""
    async with world.session() as owner:
        while len(told := _told(world)) < 5:
            await asyncio.sleep(0.05)
        await remove(owner, told[2], told[2])
    yield


def _told(world: World) -> list[int]:
    answers = (answer for event in world.history.sent for answer in event.accepted)
    return sorted({answer.position for answer in answers if answer.position is not None})


@pytest.mark.usefixtures("pgrep")
async def test_a_short_run_finds_a_row_that_was_taken_out_of_the_log() -> None:
    outcome = await short_run(
        Fault("row_removed", "", "", "database", (0.2, 0.2), _row_removed),
    )
    assert {"hole", "lost", "audit"} <= {violation.kind for violation in outcome.violations}


@pytest.mark.usefixtures("pgrep")
def test_an_interrupted_run_ends_everything_that_it_started() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "1", "--seed", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr is not None
        while "all is up" not in (line := process.stderr.readline()):
            assert line, "it did not come up"
        family = descendants(process.pid)
        assert len(family) > 5  # replicas, workers, Postgres, the receiver
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    deadline = time.monotonic() + WITHIN_S
    while left := alive(family):  # who was killed may need a moment to die
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def alive(pids: Sequence[int]) -> list[str]:
    """Return what `ps` says of those of `pids` that still run."""
    found = subprocess.run(
        ["ps", "-o", "pid=,stat=,command=", "-p", ",".join(map(str, pids))],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return [line for line in found.stdout.splitlines() if " Z" not in line]


def descendants(pid: int) -> list[int]:
    """Return all processes that a process has started, and those that they have."""
    children = children_of(pid)
    return [*children, *(it for child in children for it in descendants(child))]
