"""`causeway replay`, as an operator runs it."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.bridge import new_event
from tests.commands import Done, command
from tests.logkeeping import Owner, append
from tests.relayed import deliver, make_webhook, whens
from tests.relaying import RELAY
from tests.running import ROOT, Running, environment, free_port

DEADLINE_S = 90.0
# Where it is enabled replays go on; with its circuit open nothing is sent.
OPEN = "UPDATE causeway.webhook SET open_until = now() + interval '1 hour'"


@pytest.fixture
async def service(start: Callable[..., Awaitable[Running]]) -> Running:
    """A service whose webhooks are on."""
    return await start(**RELAY)


async def given_up(running: Running, owner: Owner, count: int, *, is_disabled: bool = False) -> int:
    """Make a webhook with deliveries of items 0, 1, 0, 1, ... that were given up.

    If it is disabled its replays stay where they are.
    """
    await append(running, *(new_event(item_id=n % 2) for n in range(count)))
    async with owner.transaction():
        hook = await make_webhook(owner, count, is_disabled=is_disabled)
        await owner.execute(OPEN)
        await deliver(owner, hook, "exhausted", *range(1, count + 1))
    return hook


async def replay(running: Running, *arguments: str) -> Done:
    return await command("replay", *arguments, CAUSEWAY_URL=running.url)


async def test_what_was_given_up_is_counted_and_sent_again(service: Running, owner: Owner) -> None:
    hook = await given_up(service, owner, 6)
    options = (str(hook), "--item-id", "1", "--until", "5", "--rate", "1000")
    dry = await replay(service, *options, "--dry-run")
    assert dry.code == 0, dry.err
    assert dry.out == (
        "would send 2 events of positions 1 to 5 (state exhausted, "
        'filter {"item_ids": [1]}) in 2.0 ms\n'
    )
    assert set((await whens(owner, hook)).values()) == {"-"}
    done = await replay(service, *options)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        f"begun: 2 events. Stop it with: causeway replay {hook} --cancel 1\n"
        f"replay 1 of webhook {hook} is done: 2 of 2 events queued, "
        "looked through to position 5 of 5\n"
    )
    assert await whens(owner, hook) == {1: "-", 2: "now", 3: "-", 4: "now", 5: "-", 6: "-"}


async def test_all_of_a_range_is_sent_again(service: Running, owner: Owner) -> None:
    hook = await given_up(service, owner, 4)
    for begin in (("--from", "start"), ("--since", "2020-01-01")):
        done = await replay(service, str(hook), "--state", "all", *begin, "--dry-run")
        assert done.out.startswith("would send 4 events of positions 1 to 4 "), done.err
    done = await replay(service, str(hook), "--state", "all", "--from", "2", "--until", "3")
    assert "2 of 2 events queued" in done.out, done.err
    assert await whens(owner, hook) == {1: "-", 2: "now", 3: "now", 4: "-"}


async def test_one_is_sent_again_at_once(service: Running, owner: Owner) -> None:
    hook = await given_up(service, owner, 2)
    assert (await replay(service, str(hook), "--position", "2")).out == "position 2 is queued\n"
    again = await replay(service, str(hook), "--position", "2")
    assert again.out == "position 2 is on its way already\n"
    assert await whens(owner, hook) == {1: "-", 2: "now"}


async def test_a_replay_is_left_going_and_cancelled(service: Running, owner: Owner) -> None:
    hook = await given_up(service, owner, 3, is_disabled=True)
    begun = await replay(service, str(hook), "--rate", "0.01", "--no-follow")
    assert begun.code == 0
    first, second = begun.out.splitlines()
    assert first.startswith(f"replay 1 of webhook {hook} goes on: 0 of 3 events queued")
    assert second == f"Stop it with: causeway replay {hook} --cancel 1"
    stopped = await replay(service, str(hook), "--cancel", "1")
    assert stopped.code == 0
    assert stopped.out.startswith(f"replay 1 of webhook {hook} is cancelled: 0 of 3")


@asynccontextmanager
async def following(running: Running, hook: int) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "replay", str(hook), "--rate", "0.01"),
        env=environment(CAUSEWAY_URL=running.url),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_begun(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"begun: 3 events.")


async def test_ctrl_c_leaves_it_going_and_says_how_to_stop_it(
    service: Running, owner: Owner
) -> None:
    hook = await given_up(service, owner, 3, is_disabled=True)
    async with following(service, hook) as process:
        await until_begun(process)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b" goes on: 0 of 3 events queued" in out
    assert b"--cancel 1" in out
    assert await owner.fetchval("SELECT cancelled_at IS NULL FROM causeway.replay")


async def test_whoever_follows_hears_that_it_was_cancelled(service: Running, owner: Owner) -> None:
    hook = await given_up(service, owner, 3, is_disabled=True)
    async with following(service, hook) as process:
        await until_begun(process)
        await replay(service, str(hook), "--cancel", "1")
        out, _ = await process.communicate()
    assert process.returncode == 1
    assert b"is cancelled" in out


async def test_what_cannot_be_is_one_sentence(service: Running, owner: Owner) -> None:
    hook = await given_up(service, owner, 2)
    for arguments, code in (
        ((str(hook + 1),), "404 unknown_webhook"),
        ((str(hook), "--state", "all"), "400 bad_request"),
        ((str(hook), "--from", "2", "--until", "1"), "400 bad_request"),
        ((str(hook), "--cancel", "7"), "404 unknown_replay"),
        ((str(hook), "--position", "3"), "404 unknown_delivery"),
    ):
        done = await replay(service, *arguments)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"causeway: the server answered {code}: "), done.err
        assert len(done.err.splitlines()) == 1
    away = await command("replay", "1", CAUSEWAY_URL=f"http://127.0.0.1:{free_port()}")
    assert (away.code, len(away.err.splitlines())) == (1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("x",),
        ("0",),
        ("1", "--position", "1", "--cancel", "1"),
        ("1", "--position", "1", "--type", "item.*"),
        ("1", "--cancel", "1", "--dry-run"),
        ("1", "--from", "1", "--since", "2026-01-01"),
    ],
)
async def test_options_that_cannot_be_are_exit_2(arguments: tuple[str, ...]) -> None:
    assert (await command("replay", *arguments)).code == 2
