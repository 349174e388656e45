"""What a `.creds` file holds: a user's JWT, and the seed of the key that proves it is theirs. Pure.

NATS sends a nonce, and takes the JWT with the nonce signed by Ed25519. The seed is spelled as NATS
does: base32 of two bytes that say what it is, 32 bytes, and a CRC-16 of both.
"""

import base64
import binascii
import re
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\s+(\S+)\s+------END")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\s+(\S+)\s+------END")
_USER_SEED = b"\x95\x00"  # in base32 `SU`
_LENGTH = 2 + 32 + 2


@dataclass(frozen=True, slots=True)
class NatsCredentials:
    """A user of NATS."""

    jwt: str = field(repr=False)
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "NatsCredentials":
        """Return the user of a `.creds` file. Raises ValueError, which quotes nothing of it."""
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise ValueError("the text of a .creds file was expected: a user's JWT and seed")
        return cls(jwt[1], Ed25519PrivateKey.from_private_bytes(_seed_bytes(seed[1])))

    def sign(self, nonce: str) -> bytes:
        """Return the signature of the server's nonce, as NATS takes it: in base64."""
        return base64.b64encode(self._key.sign(nonce.encode()))


def _seed_bytes(text: str) -> bytes:
    wrong = ValueError("its seed is not a user's, or has a typing error")
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        raise wrong from None
    checked, crc = raw[:-2], raw[-2:]
    if len(raw) != _LENGTH or raw[:2] != _USER_SEED:
        raise wrong
    if binascii.crc_hqx(checked, 0) != int.from_bytes(crc, "little"):
        raise wrong
    return checked[2:]
