"""Sealed values: nobody reads or moves one, and a key is changed without losing any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SecretUnreadable
from service.seal import Sealer

OLD = "an old key of thirty-two letters"
NEW = "a new key of thirty-two letters."
CONTEXT = "webhook:12:secret"
PLAIN = "whsec_cGxhaW4gdGV4dCB0aGF0IG5vYm9keSBzZWVz"

# Sealed once by this code, with NEW for CONTEXT.
FIXED = (
    "0193398559b283a5c8c88990a8661266946f89553f99631c24fe5507002391b56ce9499b10923282"
    "f05739e26c4c3dde0c46dcdfa510c295c78da39d1b921226caa5c8cfe1e43c459945374f15f117"
)

sealer = Sealer([NEW])


@given(
    plain=st.text(st.characters(exclude_categories=["Cs"])),
    context=st.text(st.characters(codec="utf-8")),
)
def test_what_was_sealed_opens_to_the_same_text(plain: str, context: str) -> None:
    sealed = sealer.seal(plain, context)
    assert sealer.open(sealed, context) == plain
    assert Sealer([OLD, NEW]).open(sealed, context) == plain


def test_a_sealed_value_shows_nothing_and_is_never_the_same_twice() -> None:
    first, second = sealer.seal(PLAIN, CONTEXT), sealer.seal(PLAIN, CONTEXT)
    assert first != second
    assert first[:9] == second[:9]  # the version, and which key
    for length in (8, len(PLAIN)):
        assert PLAIN[:length].encode() not in first
    assert NEW.encode()[:8] not in first


@pytest.mark.parametrize("context", ["webhook:13:secret", "webhook:12:headers", "", CONTEXT + " "])
def test_a_value_does_not_open_elsewhere(context: str) -> None:
    sealed = sealer.seal(PLAIN, CONTEXT)
    with pytest.raises(SecretUnreadable, match="altered, or moved"):
        sealer.open(sealed, context)


def test_no_byte_can_be_altered_and_none_left_out() -> None:
    sealed = sealer.seal(PLAIN, CONTEXT)
    for n in range(len(sealed)):
        altered = bytearray(sealed)
        altered[n] ^= 1
        for bad in (bytes(altered), sealed[:n]):
            with pytest.raises(SecretUnreadable) as refused:
                sealer.open(bad, CONTEXT)
            assert PLAIN not in str(refused.value)


def test_an_unknown_key_is_named_as_the_reason_and_not_shown() -> None:
    sealed = Sealer([OLD]).seal(PLAIN, CONTEXT)
    with pytest.raises(SecretUnreadable, match="CAUSEWAY_SECRET_KEY lacks the key") as refused:
        sealer.open(sealed, CONTEXT)
    assert CONTEXT in refused.value.message
    assert OLD not in str(refused.value)
    assert NEW not in str(refused.value)


def test_a_key_is_changed_step_by_step_and_all_can_be_read_at_each() -> None:
    sealed = Sealer([OLD]).seal(PLAIN, CONTEXT)
    both = Sealer([NEW, OLD])
    assert both.is_current(sealed) is False
    anew = both.seal(both.open(sealed, CONTEXT), CONTEXT)
    assert both.is_current(anew) is True
    assert Sealer([OLD, NEW]).open(anew, CONTEXT) == PLAIN  # a replica that was not restarted yet
    assert Sealer([OLD, NEW]).is_current(anew) is False
    assert sealer.open(anew, CONTEXT) == PLAIN


def test_a_value_of_today_can_be_opened_for_ever() -> None:
    """Made once by this code: whoever changes the form or the derivation must open the old form."""
    sealed = bytes.fromhex(FIXED)
    assert sealer.open(sealed, CONTEXT) == PLAIN
