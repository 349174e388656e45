"""docs/security.md names tests that exist, and limits that are the code's."""

import re

import pytest

from service import body, callback_connection, cursor, pages, refusal
from service.config import Settings
from service.dashboard import attempts
from service.filter import PATTERNS_MAX
from tests.running import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
LIMITS = {
    "headers of a request": (refusal.HEAD_MAX_BYTES // 1024, refusal.HEADERS_MAX),
    "requests sent ahead on a connection": (refusal.PIPELINE_MAX,),
    "body of a call of the API": (body.MAX_BYTES // 1024, body.TIMEOUT_S),
    "values of a filter": (cursor._MAX_VALUES,),
    "a page of events": (pages.MAX_LIMIT, pages.PAGE_BYTES // 1024**2, pages.MAX_WAIT_S),
    "calls for events that a token has open in a process": (pages.OPEN_MAX,),
    "patterns of types in a filter": (PATTERNS_MAX,),
    "bad logins of an address": (attempts.FREE, attempts.FIRST_WAIT_S, attempts.LONGEST_WAIT_S),
    "a callback's answer": (
        callback_connection.HEAD_MAX_BYTES // 1024,
        callback_connection.BODY_MAX_BYTES // 1024,
    ),
}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of every row of the tables under a heading."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("attack", "what") and set(row[0]) != {"-"}]


def test_each_attack_has_what_holds_and_a_test_that_exists() -> None:
    for attack, holds, shown in rows("Boundaries"):
        assert holds, attack
        names = re.findall(r"`(test_\w+)`", shown)
        assert names, attack
        for name in names:
            assert (ROOT / "tests" / f"{name}.py").is_file(), f"{attack}: {name}"


def test_each_limit_is_the_codes() -> None:
    defaults = {str(it.validation_alias): it.default for it in Settings.model_fields.values()}
    tried = set()
    for what, much, _ in rows("Limits"):
        named = re.findall(r"`(\w+)` = (\d+)", much)
        for name, value in named:
            assert float(value) == defaults[name], name
        if what in LIMITS:
            constants = re.findall(r"\d+", re.sub(r"`\w+` = \d+", "", much))
            assert list(map(float, constants)) == list(LIMITS[what]), what
            tried.add(what)
        else:
            assert named, f"{what}: which setting, or which constant?"
    assert tried == LIMITS.keys()


@pytest.mark.parametrize("page", ["SECURITY.md", "README.md"])
def test_the_page_is_found(page: str) -> None:
    assert "(docs/security.md)" in (ROOT / page).read_text()
