"""Seals what the database must not know in clear: the secrets and headers of outgoing webhooks.

AES-256-GCM under keys that HKDF-SHA256 derives from the texts of CAUSEWAY_SECRET_KEY. The newest
key seals, any of them opens. A sealed value names its key, and opens only in the context that it
was sealed for: it can't be moved to another row or column. No message holds a key or a plain text.

    version (1 byte) | key id (8) | nonce (12) | ciphertext and tag
"""

import hashlib
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.errors import SecretUnreadable

_VERSION = b"\x01"
_ID_BYTES = 8
_HEAD_BYTES = len(_VERSION) + _ID_BYTES
_NONCE_BYTES = (
    12  # random: 2^32 values under one key before two are likely to be equal (SP 800-38D)
)
_TAG_BYTES = 16
_PURPOSE = b"causeway/seal/1"


class Sealer:
    """Seals with the first of `keys`, at least one; opens with any."""

    def __init__(self, keys: Sequence[str]) -> None:
        derived = [_derive(key) for key in keys]
        self._newest = _key_id(derived[0])
        self._ciphers = {_key_id(key): AESGCM(key) for key in derived}

    def seal(self, plain: str, context: str) -> bytes:
        """Return `plain` sealed for `context`; twice the same is never sealed alike."""
        head = _VERSION + self._newest
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = self._ciphers[self._newest]
        return head + nonce + cipher.encrypt(nonce, plain.encode(), head + context.encode())

    def open(self, sealed: bytes, context: str) -> str:
        """Return what was sealed for `context`. Raises SecretUnreadable, saying what to do."""
        head, nonce = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        if head[:1] != _VERSION or len(sealed) < _HEAD_BYTES + _NONCE_BYTES + _TAG_BYTES:
            raise SecretUnreadable(f"{context}: not sealed by this version of Causeway")
        cipher = self._ciphers.get(head[len(_VERSION) :])
        if cipher is None:
            raise SecretUnreadable(
                f"{context}: CAUSEWAY_SECRET_KEY lacks the key that it was sealed with: put the "
                "old key beside the new one"
            )
        try:
            plain = cipher.decrypt(nonce, sealed[len(head + nonce) :], head + context.encode())
        except InvalidTag:
            raise SecretUnreadable(f"{context}: it was altered, or moved from elsewhere") from None
        return plain.decode()

    def is_current(self, sealed: bytes) -> bool:
        """True if the newest key sealed it."""
        return sealed[:_HEAD_BYTES] == _VERSION + self._newest


def _derive(key: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(key.encode())


def _key_id(derived: bytes) -> bytes:
    return hashlib.sha256(_PURPOSE + derived).digest()[:_ID_BYTES]
