"""docs/scale.md names what there is; and the links of every page lead somewhere."""

import re
from pathlib import Path

import pytest

from service.config import variables
from tests.bench.__main__ import BENCHES
from tests.test_readme import README, ROOT, table

PAGE = (ROOT / "docs" / "scale.md").read_text()
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


def test_its_settings_metrics_benchmarks_and_files_exist() -> None:
    known = {*variables(), *table("Metrics")}
    named = set(re.findall(r"`((?:CAUSEWAY|causeway)_[A-Za-z_]*[A-Za-z])`", PAGE))
    assert named <= known
    cells = [
        row.strip("| ").split(" | ")[-1] for row in PAGE.splitlines() if re.match(r"\| \d\.", row)
    ]
    assert len(cells) == 7
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} <= set(BENCHES)
    for path in re.findall(r"`((?:k8s|tests)/[\w./]+)`", PAGE + README):
        assert (ROOT / path).exists(), path
