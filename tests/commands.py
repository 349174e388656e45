"""Run `python -m service ...` as an operator does, on a test's database."""

import asyncio
import subprocess
import sys
from dataclasses import dataclass

from tests.running import ROOT, START_S, environment


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


async def command(*arguments: str, **settings: str) -> Done:
    """Run one command to its end; `settings` are variables of its environment."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "service", *arguments],
        env=environment(COLUMNS="200", **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)
