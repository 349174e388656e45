"""The dashboard's live feed under load: whether the page stays usable, and how late its rows are.

A real headless Chromium on the page of events while a simulated Bridge sends at a steady rate.
Usable: how long the page's own event loop takes from one turn to the next, which is how long a
click may wait. Late: from the receipt of an event to its row, once a frame, by the clock that both
share. Browser, service and Bridge share the machine. Nothing is measured without Chromium.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path

from service.embedded import EmbeddedPostgres
from service.simulate import Plan, Simulation
from tests.bench.databases import fresh_database
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_most, figure
from tests.chromium import Browser, chromium
from tests.running import ADMIN_TOKEN, SECRET, WITHIN_S, environment, service_process

ROWS_MAX = 200
USABLE = at_most(100)  # a wait that people feel as none
WATCH = """
window.turns = []; window.late = []; window.most = 0;
let last = performance.now();
const turn = new MessageChannel();
turn.port1.onmessage = () => {
  const now = performance.now(); window.turns.push(now - last); last = now;
  setTimeout(() => turn.port2.postMessage(0), 5);
};
turn.port2.postMessage(0);
const frame = () => {
  const time = document.querySelector("#rows time");
  if (time) window.late.push(Date.now() - Date.parse(time.dateTime));
  window.most = Math.max(window.most, document.querySelectorAll("#rows tr[data-position]").length);
  requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
"""


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return how long the page's turns take, how late its rows are, how many it keeps."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-feed-") as name:
        folder = Path(name)
        async with fresh_database(postgres) as database:
            env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_LOG_LEVEL="warning")
            with (
                service_process(env, folder / "log") as process,
                chromium(process.url, folder) as browser,
            ):
                await asyncio.to_thread(_begin, browser)
                count = round(effort.end_rate * effort.end_s)
                plan = Plan(
                    process.url,
                    (SECRET,),
                    rate=effort.end_rate,
                    count=count,
                    timeout_s=WITHIN_S,
                )
                report = await Simulation(plan).run(asyncio.Event())
                seen = await asyncio.to_thread(_seen, browser)
    if report.accepted != count:
        raise RuntimeError(f"{report.accepted} of {count} events were accepted")
    return _figures(effort.end_rate, seen)


def _begin(browser: Browser) -> None:
    browser.log_in(ADMIN_TOKEN, "/dashboard/events")
    browser.sees("live", "#state")
    browser.run(WATCH)


def _seen(browser: Browser) -> dict[str, list[float]]:
    browser.wait(lambda: browser.run("return window.late.length > 0 && window.turns.length > 0"))
    found: dict[str, list[float]] = browser.run(
        "return {turns: window.turns, late: window.late, most: [window.most]}"
    )
    return found


def _figures(rate: int, seen: dict[str, list[float]]) -> list[Figure]:
    turns, late = sorted(seen["turns"]), sorted(seen["late"])
    what = f"{rate} events/s"
    return [
        figure(f"{what}, a turn of the page, p50", "ms", [turns[len(turns) // 2]]),
        figure(f"{what}, a turn of the page, p99", "ms", [turns[len(turns) * 99 // 100]], USABLE),
        figure(f"{what}, from receipt to row, p50", "ms", [max(0.1, late[len(late) // 2])]),
        figure("rows in the page at the most", "rows", seen["most"], at_most(ROWS_MAX)),
    ]
