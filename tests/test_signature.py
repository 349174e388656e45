"""Bridge's signature: every known case, and properties that no case list can show."""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.signature import matching_secret, sign

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "bridge_signatures.json").read_text()
)
secrets = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable())
some_secrets = st.lists(secrets, min_size=1, max_size=2, unique=True)


def part(body: bytes, secret: str) -> str:
    """Return one `v1` part, computed apart from our code."""
    return "v1=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest().upper()


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_known_cases(vector: dict[str, Any]) -> None:
    body = vector["body"].encode("latin-1")
    match = matching_secret(body, vector["header"], vector["secrets"])
    assert match == vector["matched_secret"]
    assert (match is not None) == vector["valid"]


@given(st.binary(), some_secrets)
def test_what_is_signed_verifies_with_the_first_secret(body: bytes, keys: list[str]) -> None:
    header = sign(body, keys)
    assert header == ",".join(part(body, key) for key in keys)
    assert matching_secret(body, header, keys) == 0


@given(st.binary(), some_secrets, st.data())
def test_any_part_may_match_any_secret(body: bytes, keys: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(keys) - 1))
    junk = st.sampled_from(["v1=" + "0" * 64, "v0=" + "A" * 64, "", "v1", "x", part(b"o", "o")])
    before, after = data.draw(st.lists(junk, max_size=4)), data.draw(st.lists(junk, max_size=4))
    space = data.draw(st.text(" \t", max_size=3))
    signed = data.draw(st.sampled_from([str.upper, str.lower]))(part(body, keys[index])[3:])
    header = ",".join([*before, f"{space}v1={signed}{space}", *after])
    assert matching_secret(body, header, keys) == index


@given(st.binary(), st.binary(), secrets)
def test_another_body_never_verifies(body: bytes, other: bytes, key: str) -> None:
    assume(body != other)
    assert matching_secret(other, sign(body, [key]), [key]) is None


@given(st.binary(), secrets, secrets)
def test_another_secret_never_verifies(body: bytes, key: str, other: str) -> None:
    # HMAC pads keys with NUL, which a printable secret cannot hold.
    assume(key != other)
    assert matching_secret(body, sign(body, [key]), [other]) is None


@given(st.binary(), secrets, st.integers(3, 66), st.characters())
def test_one_changed_letter_never_verifies(body: bytes, key: str, at: int, letter: str) -> None:
    header = sign(body, [key])
    assume(letter.upper() != header[at])
    changed = header[:at] + letter + header[at + 1 :]
    assert matching_secret(body, changed, [key]) is None


@given(st.binary(), st.text(), some_secrets)
def test_no_header_raises(body: bytes, header: str, keys: list[str]) -> None:
    assert matching_secret(body, header, keys) is None


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda digits: "v1 =" + digits, id="a space before the equals sign"),
        pytest.param(lambda digits: "v1= " + digits, id="a space after it"),
        pytest.param(lambda digits: "V1=" + digits, id="an upper case scheme"),
        pytest.param(lambda digits: "v11=" + digits, id="another scheme that begins alike"),
        pytest.param(lambda digits: "v1=0x" + digits, id="a prefix"),
        pytest.param(lambda digits: f"v1={digits[:32]} {digits[32:]}", id="a space within"),
        pytest.param(lambda digits: "v1=" + digits + "00", id="more digits"),
        pytest.param(lambda digits: "v1=" + digits[:-1] + "\uff10", id="a digit beyond ASCII"),
        pytest.param(lambda digits: "\u00a0v1=" + digits, id="white space beyond ASCII"),
        pytest.param(lambda digits: "v1=" + digits + ";", id="another separator"),
    ],
)
def test_only_the_exact_form_counts(spoil: Any) -> None:
    digits = part(b"{}", "secret")[3:]
    assert matching_secret(b"{}", f"v1={digits}", ["secret"]) == 0
    assert matching_secret(b"{}", spoil(digits), ["secret"]) is None


def test_a_secret_is_its_utf_8_text() -> None:
    assert matching_secret(b"{}", part(b"{}", "clé €"), ["clé €"]) == 0


def test_an_attackers_many_parts_are_not_all_looked_at() -> None:
    good = part(b"{}", "secret")
    junk = ["v1=" + "0" * 64]
    assert matching_secret(b"{}", ",".join([*junk * 9, good]), ["secret"]) == 0
    assert matching_secret(b"{}", ",".join([*junk * 10, good]), ["secret"]) is None


def test_no_secret_matches_nothing() -> None:
    assert matching_secret(b"{}", part(b"{}", ""), []) is None
