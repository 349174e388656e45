"""`python -m tests.bench [NAME ...] [--quick] [--output FILE]`: measure, show, keep.

The benches run one after the other on one embedded Postgres in a temporary folder.
"""

import argparse
import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import uvloop
from rich.console import Console

from service.embedded import EmbeddedPostgres
from tests.bench import (
    acks,
    append,
    endtoend,
    fanout,
    feed,
    gateways,
    idle,
    ingest,
    longlog,
    mirror,
    overload,
    relay,
    soak,
    storm,
    workers,
)
from tests.bench.effort import FULL, QUICK, Effort
from tests.bench.machine import describe
from tests.bench.report import Section, show, write
from tests.running import ROOT

BENCHES: dict[str, ModuleType] = {
    "append": append,
    "ingest": ingest,
    "fanout": fanout,
    "endtoend": endtoend,
    "longlog": longlog,
    "acks": acks,
    "relay": relay,
    "feed": feed,
    "workers": workers,
    "overload": overload,
    "idle": idle,
    "storm": storm,
    "soak": soak,
    "gateways": gateways,
    "mirror": mirror,
}
OUTPUT = ROOT / "docs" / "benchmarks.md"


def main() -> None:
    """Run the named benches (all, if none is named) and keep the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="less time, more noise")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the Markdown file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    uvloop.run(
        _run(options.names or list(BENCHES), QUICK if options.quick else FULL, options.output)
    )


async def _run(names: list[str], effort: Effort, output: Path) -> None:
    console = Console()
    sections = []
    with embedded_postgres() as postgres:
        machine = await describe(postgres)
        for name in names:
            module = BENCHES[name]
            with console.status(f"measuring {name} ..."):
                figures = await module.measure(postgres, effort)
            sections.append(Section(name, inspect.getdoc(module) or "", figures))
            show(console, sections[-1])
    write(output, sections, machine, effort.name)
    console.print(f"kept in {output}")


@contextmanager
def embedded_postgres() -> Iterator[EmbeddedPostgres]:
    """A Postgres of the bench's own, in a folder that its user can reach."""
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder)) as postgres:
            yield postgres


if __name__ == "__main__":
    main()
