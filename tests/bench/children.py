"""Processes beside the bench's own: servers that are measured, and whoever sends to them.

A child is `python -m <module>`; it prints one JSON object when it is ready, and then answers each
JSON line on its input with one on its output.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tests.running import ROOT

STOP_S = 20.0


class Child:
    """A child process that answers questions."""

    def __init__(self, popen: "subprocess.Popen[str]") -> None:
        self._popen = popen
        self.hello = self.reply()

    def tell(self, **command: object) -> None:
        """Send a command without waiting for its answer."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(command) + "\n")
        self._popen.stdin.flush()

    def reply(self) -> dict[str, Any]:
        """Wait for the next answer. Raises RuntimeError if the child has ended."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._popen.args!r} ended with {self._popen.wait()}")
        return cast("dict[str, Any]", json.loads(line))

    def ask(self, **command: object) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(**command)
        return self.reply()

    def rss_bytes(self) -> int:
        """Return the resident memory of the process that serves: the child says which it is."""
        status = Path(f"/proc/{self.hello['pid']}/status").read_text()
        match = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024


@contextmanager
def child(module: str, env: Mapping[str, str], *arguments: str) -> Iterator[Child]:
    """Run `python -m module` until the end of the block; its standard error is ours."""
    popen = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=dict(env),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with popen:
        try:
            yield Child(popen)
        finally:
            assert popen.stdin is not None
            popen.stdin.close()  # the end of its input tells a child to stop
            try:
                popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                popen.kill()


def answer(**values: object) -> None:
    """In a child: print one answer."""
    print(json.dumps(values), flush=True)


def commands() -> Iterator[dict[str, Any]]:
    """In a child: yield the commands until there are no more."""
    for line in sys.stdin:
        yield json.loads(line)


async def commands_async() -> AsyncIterator[dict[str, Any]]:
    """In a child with an event loop: yield the commands until there are no more."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        yield json.loads(line)
