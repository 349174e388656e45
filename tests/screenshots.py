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
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
from PIL import Image

from service.embedded import EmbeddedPostgres
from service.simulate import Plan, Simulation
from tests.bridge import body
from tests.chromium import Browser, chromium
from tests.running import ADMIN_TOKEN, ROOT, SECRET, Process, environment, service_process

OUTPUT = ROOT / "docs" / "screenshots"
DESKTOP, PHONE = (1280, 860), (390, 844)
COLOURS = 192
LIVE_S = 150.0  # so long that the charts have something to show
ITEM, USER = 4568477, "9a95b38f-f98b-417a-988b-9d0d584893e7"


def main() -> None:
    """Take all pictures."""
    OUTPUT.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="causeway-screenshots-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with _service(folder) as process:
            asyncio.run(_live(process))
            _pictures(process, folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _service(folder: Path) -> Iterator[Process]:
    env = environment(CAUSEWAY_DATA_DIR=str(folder / "data"), HOSTNAME="causeway")
    with service_process(env, folder / "log") as process:
        yield process
        process.terminate()
    with EmbeddedPostgres(folder / "data"):  # nothing is left running
        pass


async def _live(process: Process) -> None:
    """Let some minutes of a Bridge pass: events, duplicates, forgeries, a consumer and a stream."""
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
        plan = Plan(process.url, (SECRET,), rate=14, duplicates=0.06, forged=0.004)
        bridge = asyncio.create_task(Simulation(plan).run(stop))
        readers = [asyncio.create_task(_read(process, name)) for name in ("billing", "")]
        await asyncio.sleep(LIVE_S)
        stop.set()
        await bridge
        await _story(client)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(process: Process, consumer: str) -> None:
    params = {"consumer": consumer} if consumer else {}
    async with (
        httpx2.AsyncClient(base_url=process.url, headers=process.headers, timeout=None) as client,
        client.stream("GET", "/stream", params=params) as stream,
    ):
        async for _ in stream.aiter_bytes():
            pass


async def _story(client: httpx2.AsyncClient) -> None:
    """One bank connection's life, for the page of an item."""
    from service.signature import HEADER, sign

    who = {"item_id": ITEM, "user_uuid": USER}
    refreshed = {"status_code": 0, "status_code_info": "ok", "full_refresh": True}
    locked = {"status_code": 1010, "status_code_info": "otp_required", "full_refresh": False}
    for type_, fields in (
        ("item.created", {}),
        ("item.refreshed", refreshed),
        ("item.account.created", {"account_id": 22908770, "balance": 1678.1}),
        ("item.account.updated", {"account_id": 22908770, "nb_new_transactions": 12}),
        ("item.refreshed", locked),
    ):
        content = body(type_, **who, **fields)
        await client.post("/webhooks/bridge", content=content, headers={HEADER: sign(content, (SECRET,))})


def _pictures(process: Process, folder: Path) -> None:
    with chromium(process.url, folder, size=DESKTOP) as browser:
        _emulate(browser, DESKTOP, "light")
        browser.log_in(ADMIN_TOKEN)
        head = _head(process)
        for name, path in (
            ("overview", "/dashboard"),
            ("events", "/dashboard/events"),
            ("event", f"/dashboard/events/{head}"),
            ("item", f"/dashboard/items?q={ITEM}"),
            ("sources", "/dashboard/sources"),
            ("consumers", "/dashboard/consumers"),
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


def _head(process: Process) -> int:
    admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    answer = httpx2.get(f"{process.url}/api/log/checkpoint", headers=admin)
    head: int = answer.json()["position"]
    return head


def _emulate(browser: Browser, size: tuple[int, int], colours: str) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": colours}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def _take(browser: Browser, path: Path) -> None:
    """Keep what the browser shows, with few colours: flat pages need no more."""
    if browser.all("#charts"):
        browser.wait(lambda: "–" not in browser.text(".value"))
    if browser.all("#feed"):
        browser.sees("live", "#state")
    time.sleep(0.4)  # for the drawing of the last frame; a picture too early is only ugly
    shown = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    shown.quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
