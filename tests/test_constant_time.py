"""How long a comparison takes tells nothing of a secret. Held by the code's form, not by a clock.

Every comparison in `service/` that has a secret on one side is found by its names, and is
`hmac.compare_digest`; tokens are looked up by their SHA-256, whose beginning nobody can choose.
"""

import ast
import hashlib
import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import auth, signature
from service.auth import Tokens
from service.errors import Unauthenticated
from service.signature import matching_secret, sign
from tests.running import ADMIN_TOKEN, ROOT, STREAM_TOKEN, make_settings

# A chain link is no secret: each event is handed out with its own, and its id begins with it.
SECRET_NAME = re.compile(r"secret|digest|_mac|\bmac\b|csrf|signature|token\b|claim\b", re.I)
COMPARISONS = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
# Neither side of these is a secret of ours that a caller could guess at.
HARMLESS = {
    # An event's digest is the hash of its body, whose bytes the same reader gets.
    "service/audit.py: hashlib.sha256(event.body).digest() != event.digest",
    "service/mirrored.py: len(event.digest) != 32",
    "service/nats_log.py: event.link == chain_link("
    "before, event.digest, event.position, event.received_at, event.source)",
    "service/dashboard/assets.py: request.query_params.get('v') == asset.digest",  # public
    "service/receive.py: key == _SIGNATURE",  # the header's name
    "service/simulate.py: len(self.secrets) == 1",
    "service/sources.py: path.name in self._secrets",  # a source's name
}
# Where a secret is compared, and each that is.
CONSTANT = {
    "service/auth.py": 1,  # bootstrap tokens
    "service/signature.py": 1,
    "service/dashboard/session.py": 1,  # a cookie's signature
    "service/dashboard/door.py": 1,  # the CSRF token
}


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted((ROOT / "service").rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(Path(path).read_text())


def names_in(node: ast.Compare) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name | ast.Attribute):
            yield part.id if isinstance(part, ast.Name) else part.attr


def plain_comparisons(tree: ast.AST) -> Iterator[str]:
    """Yield the comparisons of what is named like a secret that stop at the first difference."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        is_plain = any(isinstance(operator, COMPARISONS) for operator in node.ops)
        if is_plain and any(SECRET_NAME.search(name) for name in names_in(node)):
            yield ast.unparse(node)


def test_no_secret_is_compared_in_a_way_that_stops_at_the_first_difference() -> None:
    found = {f"{path}: {text}" for path, tree in trees() for text in plain_comparisons(tree)}
    assert found == HARMLESS


def test_a_plain_comparison_would_be_found() -> None:
    for text in ("sent == secret", "token in known", "a.csrf != b", "_mac(key, x) == y"):
        assert list(plain_comparisons(ast.parse(text))) == [text]


def test_each_secret_that_comes_from_outside_is_compared_in_constant_time() -> None:
    calls = {
        path: sum(
            isinstance(node, ast.Attribute) and node.attr == "compare_digest"
            for node in ast.walk(tree)
        )
        for path, tree in trees()
    }
    assert {path: count for path, count in calls.items() if count} == CONSTANT


class Counting:
    """`hmac`, which notes what is compared."""

    def __init__(self) -> None:
        self.compared: list[tuple[bytes, bytes]] = []

    digest = staticmethod(hmac.digest)

    def compare_digest(self, a: bytes, b: bytes) -> bool:
        self.compared.append((a, b))
        return hmac.compare_digest(a, b)


def test_a_wrong_signature_costs_the_same_wherever_it_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = sign(b"body", ["first-secret"])
    digits = good.removeprefix("v1=")
    for at in (0, 31, 63):
        counting = Counting()
        monkeypatch.setattr(signature, "hmac", counting)
        wrong = f"v1={digits[:at]}{'0' if digits[at] != '0' else '1'}{digits[at + 1 :]}"
        assert matching_secret(b"body", wrong, ["first-secret", "other-secret"]) is None
        assert len(counting.compared) == 2
        assert {len(side) for pair in counting.compared for side in pair} == {32}


class Asked:
    """A database without tokens, which notes what it is asked for."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    async def fetch(self, _query: str, *args: Any, **_: Any) -> list[Any]:
        self.values += args
        return []

    def add_log_listener(self, _listener: object) -> None:
        pass

    def remove_log_listener(self, _listener: object) -> None:
        pass


async def test_a_token_is_compared_and_looked_up_by_its_hash_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both of the settings are looked at, whichever is right; the database gets a hash."""
    for sent in (STREAM_TOKEN, ADMIN_TOKEN, ADMIN_TOKEN[:-1] + "x", "cw_" + "a" * 43):
        counting, database = Counting(), Asked()
        monkeypatch.setattr(auth, "hmac", counting)
        tokens = Tokens(make_settings(), database)  # type: ignore[arg-type]
        hashed = hashlib.sha256(sent.encode()).digest()
        if sent in (STREAM_TOKEN, ADMIN_TOKEN):
            await tokens.authenticate(sent, "stream")
        else:
            with pytest.raises(Unauthenticated):
                await tokens.authenticate(sent, "stream")
        known = [hashlib.sha256(it.encode()).digest() for it in (STREAM_TOKEN, ADMIN_TOKEN)]
        assert counting.compared == [(it, hashed) for it in known]
        assert database.values == ([hashed] if sent.startswith("cw_") else [])
