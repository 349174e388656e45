"""Sources: secrets from the settings and from a folder that changes under us."""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service import sources as sources_module
from service.errors import ConfigError
from service.sources import Sources
from tests.bridge import body, post
from tests.running import SECRET, WITHIN_S, Running, eventually, make_settings
from tests.test_receive import Start

HIDDEN = "whsec-never-shown-anywhere"


def read(folder: Path | None, secret: str = SECRET) -> Sources:
    """Return the sources of `secret`, for `default`, and of `folder`."""
    return Sources(make_settings(bridge_webhook_secret=secret or (), sources_dir=folder))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "CHECK_S", 0.02)


@contextmanager
def watching(sources: Sources) -> Iterator[None]:
    """Let the loop run that sees changes."""
    task = asyncio.ensure_future(sources.watch())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()


def mount(folder: Path, version: str, **secrets: str) -> None:
    """Write `secrets` as Kubernetes does: into a new folder, to which `..data` is swapped."""
    (folder / version).mkdir(parents=True)
    for name, secret in secrets.items():
        (folder / version / name).write_text(secret)
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(folder / "..data")
    for name in secrets:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            path.unlink()


def test_the_setting_is_the_source_default() -> None:
    sources = read(None, "one,two")
    assert sources.names() == ["default"]
    assert sources.secrets("default") == ("one", "two")
    assert sources.secrets("other") is None


def test_each_file_of_the_folder_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "retail").write_text("one\n")
    (tmp_path / "business-2").write_text("new\nold\n")
    (tmp_path / ".hidden").write_text("no source")
    sources = read(tmp_path, "")
    assert sources.names() == ["business-2", "retail"]
    assert sources.secrets("retail") == ("one",)
    assert sources.secrets("business-2") == ("new", "old")
    assert read(tmp_path).names() == ["business-2", "default", "retail"]


def test_without_any_secret_the_start_stops_and_says_what_to_set(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(ConfigError, match=r"BRIDGE_WEBHOOK_SECRET .* CAUSEWAY_SOURCES_DIR"):
            read(folder, "")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("UPPER", b"s", "1 to 63 of a-z"),
        ("a.b", b"s", "1 to 63 of a-z"),
        ("-a", b"s", "1 to 63 of a-z"),
        ("a_", b"s", "1 to 63 of a-z"),
        ("a" * 64, b"s", "1 to 63 of a-z"),
        ("default", HIDDEN.encode(), "BRIDGE_WEBHOOK_SECRET already"),
        ("empty", b" \n", "one or two secrets were expected"),
        ("three", f"{HIDDEN},b,c".encode(), "one or two secrets were expected"),
        ("long", HIDDEN.encode() * 200, "too long"),
        ("bytes", HIDDEN.encode() + b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_file_stops_the_start_and_its_secret_is_not_shown(
    tmp_path: Path, name: str, content: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path)
    assert "CAUSEWAY_SOURCES_DIR" in str(caught.value)
    assert f"{name}: " in str(caught.value)
    assert reason in str(caught.value)
    assert HIDDEN not in str(caught.value) + repr(caught.value) + caplog.text
    assert all(HIDDEN not in str(record.__dict__) for record in caplog.records)


@pytest.mark.parametrize("name", ["a", "7", "a" * 63, "a-b_c"])
def test_a_good_name_has_1_to_63_characters(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("s")
    assert read(tmp_path).secrets(name) == ("s",)


def test_a_folder_within_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(ConfigError, match="inner: Is a directory"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="nowhere: a folder was expected"):
        read(tmp_path / "nowhere")


async def test_changes_are_seen_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "retail"
    file.write_text("one")
    sources = read(tmp_path)
    with watching(sources):
        file.write_text("two,one")
        await eventually(lambda: sources.secrets("retail") == ("two", "one"))
        (tmp_path / "more").write_text("three")
        await eventually(lambda: sources.secrets("more") == ("three",))
        file.unlink()
        await eventually(lambda: sources.secrets("retail") is None)
        assert sources.secrets("default") == (SECRET,)


async def test_the_swap_of_a_mounted_secret_is_seen(tmp_path: Path) -> None:
    mount(tmp_path, "..v1", retail="one", old="gone soon")
    sources = read(tmp_path)
    assert sources.names() == ["default", "old", "retail"]
    with watching(sources):
        mount(tmp_path, "..v2", retail="two", fresh="three")
        await eventually(lambda: sources.names() == ["default", "fresh", "retail"])
        assert sources.secrets("retail") == ("two",)


async def test_a_bad_file_keeps_its_old_secret_and_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "retail").write_text("one")
    (tmp_path / "business").write_text("one")
    sources = read(tmp_path)
    with watching(sources):
        (tmp_path / "retail").write_text(f"{HIDDEN},b,c")
        (tmp_path / "business").write_text("two")
        await eventually(lambda: sources.secrets("business") == ("two",))
        await eventually(lambda: _errors(caplog) == ["retail"])
        assert sources.secrets("retail") == ("one",)
        (tmp_path / "retail").write_text("good again")
        await eventually(lambda: sources.secrets("retail") == ("good again",))
    assert all(HIDDEN not in str(record.__dict__) for record in caplog.records)


async def test_a_link_that_leads_nowhere_does_not_hold_the_others_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "real").write_text("one")
    (tmp_path / "retail").symlink_to("real")
    sources = read(tmp_path)
    with watching(sources):
        (tmp_path / "real").rename(tmp_path / "business")
        await eventually(lambda: sources.secrets("business") == ("one",))
        assert sources.secrets("retail") == ("one",)
        assert "retail" in _errors(caplog)


async def test_a_folder_that_goes_away_keeps_what_was_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "retail").write_text("one")
    sources = read(folder)
    with watching(sources):
        folder.rename(tmp_path / "away")
        await eventually(lambda: "sources folder unreadable" in caplog.text)
        assert sources.secrets("retail") == ("one",)
        (tmp_path / "away" / "retail").write_text("new")
        (tmp_path / "away").rename(folder)
        await eventually(lambda: sources.secrets("retail") == ("new",))


async def test_a_file_with_the_same_size_and_time_is_told_by_its_inode(tmp_path: Path) -> None:
    for name, secret in (("one", "aaa"), ("two", "bbb")):
        (tmp_path / f".{name}").write_text(secret)
        os.utime(tmp_path / f".{name}", ns=(10**18, 10**18))
    (tmp_path / ".one").rename(tmp_path / "retail")
    sources = read(tmp_path)
    with watching(sources):
        (tmp_path / ".two").rename(tmp_path / "retail")
        await eventually(lambda: sources.secrets("retail") == ("bbb",))


async def test_a_running_service_takes_a_new_source_and_forgets_a_removed_one(
    start: Start, tmp_path: Path
) -> None:
    mount(tmp_path, "..v1", retail="one")
    running: Running = await start(sources_dir=tmp_path)
    assert (await post(running.url, body(), source="retail", secrets=("one",))).status_code == 200

    async def status(secret: str) -> int:
        return (await post(running.url, body(), source="retail", secrets=(secret,))).status_code

    mount(tmp_path, "..v2", retail="two,one")
    async with asyncio.timeout(WITHIN_S):
        while await status("two") != 200:
            await asyncio.sleep(0.02)
    assert await status("one") == 200
    mount(tmp_path, "..v3", other="x")
    async with asyncio.timeout(WITHIN_S):
        while await status("two") != 404:
            await asyncio.sleep(0.02)


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [it for it in caplog.records if it.levelno == logging.ERROR]
    return [str(it.__dict__["source"]) for it in records]
