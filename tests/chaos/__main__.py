"""`python -m tests.chaos [--minutes N] [--seed N] [--only NAME ...] [--report FILE]`.

Exit code 1 if a promise was broken, 130 if it was interrupted; whatever it started is ended.
"""

import argparse
import asyncio
import os
import platform
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.fault import Fault
from tests.chaos.faults import FAULTS, choose
from tests.chaos.report import Told, report
from tests.chaos.run import Outcome, run
from tests.chaos.schedule import Step, plan
from tests.chaos.world import ARGUMENTS

MINUTES = 5.0
PER_S = 30.0
END_S = 30.0  # of the time is for the beginning and the end
MAX_SEED = 10_000


def main() -> int:
    """Run, show the report, keep it if a file was named."""
    options = _options()
    seed = random.SystemRandom().randrange(MAX_SEED) if options.seed is None else options.seed
    faults, skipped = choose(options.only)
    for name, reason in skipped.items():
        _tell(f"{name} is skipped: {reason}")
    within_s = max(10.0, options.minutes * 60 - END_S)
    steps = plan(seed, faults, within_s=within_s, replicas=len(ARGUMENTS))
    _tell(f"seed {seed}, {len(steps)} steps in about {options.minutes:g} minutes")
    try:
        outcome = asyncio.run(_run(seed, steps, faults, options.rate, within_s))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _tell("interrupted; everything was ended")
        return 130
    except Exception:
        _tell(f"the harness itself failed; run it again: {_command(seed, options)}")
        raise
    told = Told(seed, _command(seed, options), _machine(), faults, skipped, steps)
    text = report(told, outcome)
    print(text)
    if options.report is not None:
        options.report.write_text(text)
    return 1 if outcome.violations else 0


async def _run(
    seed: int, steps: Sequence[Step], faults: dict[str, Fault], per_s: float, within_s: float
) -> Outcome:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(seed, steps, faults, per_s=per_s, within_s=within_s, tell=_tell)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, help="the same seed gives the same faults")
    parser.add_argument("--rate", type=float, default=PER_S, help="events a second")
    parser.add_argument("--only", nargs="*", default=(), metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--report", type=Path, help="keep the report in this file as well")
    return parser.parse_args()


def _command(seed: int, options: argparse.Namespace) -> str:
    only = f" --only {' '.join(options.only)}" if options.only else ""
    rate = f" --rate {options.rate:g}" if options.rate != PER_S else ""
    return f"python -m tests.chaos --minutes {options.minutes:g} --seed {seed}{rate}{only}"


def _machine() -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "replicas": ", ".join(" ".join(("serve", *it)) for it in ARGUMENTS),
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
