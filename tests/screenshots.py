"""`make screenshots`: the dashboard's pages, light, dark and on a phone, as pictures in docs/.

Runs a service of its own on an embedded Postgres, fills it with a simulated Bridge's events, and
drives a headless Chromium. Needs Debian's chromium and chromium-driver, and Pillow for small files.
"""

import asyncio
import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import orjson
from PIL import Image

from service.client import subscribe
from service.embedded import EmbeddedPostgres
from service.signature import HEADER, sign
from service.simulate import Plan, Simulation
from tests.chromium import Browser, chromium
from tests.receiver import Receiver
from tests.relaying import RELAY
from tests.running import (
    ADMIN_TOKEN,
    ROOT,
    SECRET,
    STREAM_TOKEN,
    Process,
    environment,
    service_process,
)

OUTPUT = ROOT / "docs" / "screenshots"
DESKTOP, PHONE = (1280, 860), (390, 844)
COLOURS = 192
DRAWN = "return /\\d/.test(document.querySelector('.value').textContent)"
LIVE_S = 75.0  # real figures; SEEDED is made of them
# For the charts alone, and in this browser alone: an hour before the first sample, with the ups and
# downs of a working day, in the size of what was really measured.
SEEDED = """
const real = window.fetch;
window.fetch = async (url, ...more) => {
  const answer = await real(url, ...more);
  if (!String(url).startsWith("/dashboard/stats?range=hour&after=0")) return answer;
  const stats = await answer.json();
  const first = stats.times[0], step = stats.step_s, n = 715 - stats.times.length;
  let state = 42;
  const random = () => (state = (state * 16807) % 2147483647) / 2147483647;
  stats.times = [...Array.from({length: n}, (_, i) => first - (n - i) * step), ...stats.times];
  for (const name of Object.keys(stats.figures)) {
    const known = stats.figures[name], values = known.filter((v) => v !== null);
    const mean = values.reduce((a, b) => a + b, 0) / Math.max(values.length, 1);
    const isSize = name === "database_bytes", isWhole = /pending|lag_events|subscribers/.test(name);
    let drift = 1;
    const made = Array.from({length: n}, (_, i) => {
      drift += (random() - 0.5) * 0.09 - (drift - 1) * 0.03;
      const wave = 1 + 0.25 * Math.sin(i / 95) + 0.12 * Math.sin(i / 23);
      if (isSize) return values.length ? values[0] * (0.82 + 0.18 * i / n) : null;
      if (name === "subscribers") return values.length ? values[0] : null;
      const value = mean * Math.max(0.2, drift * wave * (random() > 0.985 ? 1.5 : 1));
      return values.length ? (isWhole ? Math.round(value) : value) : null;
    });
    stats.figures[name] = [...made, ...known];
  }
  return new Response(JSON.stringify(stats), {headers: {"content-type": "application/json"}});
};
"""
BUSY = "database+is+read-only"
ITEM, USER = 4568477, "9a95b38f-f98b-417a-988b-9d0d584893e7"


def main() -> None:
    """Take all pictures."""
    OUTPUT.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="causeway-screenshots-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with Receiver() as receiver, _service(folder) as process:
            asyncio.run(_live(process, folder, receiver))
    finally:
        shutil.rmtree(folder)


@contextmanager
def _service(folder: Path) -> Iterator[Process]:
    relay = {f"CAUSEWAY_{name.upper()}": str(value) for name, value in RELAY.items()}
    env = environment(CAUSEWAY_DATA_DIR=str(folder / "data"), **relay)
    with service_process(env, folder / "log") as process:
        yield process
        process.terminate()
    with EmbeddedPostgres(folder / "data"):  # nothing is left running
        pass


async def _live(process: Process, folder: Path, receiver: Receiver) -> None:
    """Let some minutes of a Bridge pass, with a consumer that reads and one that nobody is."""
    admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    stop = asyncio.Event()
    async with httpx2.AsyncClient(base_url=process.url, headers=admin) as client:
        for name, types in (("billing", ["item.*"]), ("ledger", ["payment.*", "transfer.*"])):
            wish = {"start": "start", "filter": {"types": types}}
            await client.put(f"/consumers/{name}", json=wish)
        soon = (datetime.now(UTC) + timedelta(days=5)).isoformat()
        for token in (
            {"name": "billing"},
            {"name": "reporting", "types": ["payment.*"], "expires_at": soon},
            {"name": "on-call", "scope": "admin"},
        ):
            await client.post("/api/tokens", json=token)
        await _webhooks(client, receiver)
        plan = Plan(process.url, (SECRET,), rate=14, duplicates=0.06, forged=0.004)
        tasks = [
            asyncio.create_task(Simulation(plan).run(stop)),
            asyncio.create_task(_work(process)),
            asyncio.create_task(_watch(process)),
        ]
        await asyncio.sleep(LIVE_S)
        await _story(client)
        await asyncio.to_thread(_pictures, process, folder)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _webhooks(client: httpx2.AsyncClient, receiver: Receiver) -> None:
    """One that works, one whose callback fails, one that is disabled."""
    items = ["item.refreshed", "item.account.updated"]
    for wish in (
        {"name": "billing", "url": f"{receiver.url}/good", "types": items, "ordered": True},
        {"name": "ledger", "url": f"{receiver.url}/say/503?text={BUSY}", "types": ["payment.*"]},
        {"name": "crm", "url": f"{receiver.url}/good?for=crm", "types": ["item.created"]},
    ):
        headers = {"X-Api-Key": "not shown"}
        made = await client.post("/api/webhooks", json=wish | {"headers": headers})
        if wish["name"] == "crm":
            await client.post(f"/api/webhooks/{made.json()['id']}/disable")


async def _work(process: Process) -> None:
    """Be the consumer billing, and acknowledge what comes."""
    async with aclosing(subscribe(process.url, STREAM_TOKEN, consumer="billing")) as events:
        async for event in events:
            await event.ack()


async def _watch(process: Process) -> None:
    """Be a plain subscriber."""
    async with aclosing(subscribe(process.url, STREAM_TOKEN)) as events:
        async for _ in events:
            pass


async def _story(client: httpx2.AsyncClient) -> None:
    """One bank connection's life, for the page of an item."""
    who = {"item_id": ITEM, "user_uuid": USER}
    account = {"account_id": 22908770, **who, "currency_code": "EUR", "balance": 1678.1}
    refreshed = {"status_code": 0, "status_code_info": "ok", "full_refresh": True}
    locked = {"status_code": 1010, "status_code_info": "otp_required", "full_refresh": False}
    for type_, content in (
        ("item.created", who),
        ("item.refreshed", who | refreshed),
        ("item.account.created", account),
        ("item.account.updated", account | {"nb_new_transactions": 12}),
        ("item.refreshed", who | locked),
    ):
        event = {"content": content, "timestamp": int(time.time() * 1000), "type": type_}
        sent = orjson.dumps(event)
        await client.post("/webhooks/bridge", content=sent, headers={HEADER: sign(sent, (SECRET,))})


def _pictures(process: Process, folder: Path) -> None:
    with chromium(process.url, folder, size=DESKTOP) as browser:
        _emulate(browser, DESKTOP, "light")
        browser.log_in(ADMIN_TOKEN)
        source = {"source": SEEDED}
        browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
        event = _last_of_the_item(process)
        for name, path in (
            ("overview", "/dashboard"),
            ("events", "/dashboard/events"),
            ("event", f"/dashboard/events/{event}"),
            ("item", f"/dashboard/items?q={ITEM}"),
            ("sources", "/dashboard/sources"),
            ("consumers", "/dashboard/consumers"),
            ("webhooks", "/dashboard/webhooks"),
            ("webhook-new", "/dashboard/webhooks/new"),
            ("webhook", "/dashboard/webhooks/2"),
            ("delivery", f"/dashboard/webhooks/2/deliveries/{_failed(process)}"),
            ("tokens", "/dashboard/tokens"),
            ("log", "/dashboard/log"),
        ):
            for suffix, size, colours in (
                ("", DESKTOP, "light"),
                ("-dark", DESKTOP, "dark"),
                ("-phone", PHONE, "light"),
            ):
                _emulate(browser, size, colours)
                browser.open(path)
                _take(browser, OUTPUT / f"{name}{suffix}.png")


def _last_of_the_item(process: Process) -> str:
    query = {"item_id": str(ITEM)}
    answer = httpx2.get(f"{process.url}/events", params=query, headers=process.headers)
    event: str = answer.json()["events"][-1]["position"]
    return event


def _failed(process: Process) -> int:
    admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    answer = httpx2.get(f"{process.url}/api/webhooks/2/deliveries?limit=500", headers=admin)
    tried = [one for one in answer.json()["deliveries"] if one["attempts"] > 1]
    position: int = tried[-1]["position"]
    return position


def _emulate(browser: Browser, size: tuple[int, int], colours: str) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": colours}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def _take(browser: Browser, path: Path) -> None:
    """Keep what the browser shows, with few colours: flat pages need no more."""
    if browser.all("#charts"):
        browser.wait(lambda: browser.run(DRAWN))
    if browser.all("#create.sheet"):
        browser.click("[name=events][value=some]")
        for name in ("item.refreshed", "item.account.updated"):
            browser.click(f"[name=type][value='{name}']")
        browser.type("[name=url]", "https://billing.example.com/hooks/bridge")
    if browser.all("#feed"):
        browser.sees("live", "#state")
    time.sleep(0.4)  # for the drawing of the last frame; a picture too early is only ugly
    shown = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    shown.quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
