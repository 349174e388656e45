"""Who may call us: each source's one or two secrets, from the settings and from a folder.

The folder is meant to be a mounted Kubernetes Secret: a file for each source, swapped by symlink.
It is read again when it changes. A file that cannot be understood keeps what was known of its
source and is reported; the others are taken.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from service.config import Settings
from service.errors import ConfigError
from service.roles import Role
from service.settings import split_secrets

log = logging.getLogger("causeway.sources")

DEFAULT_SOURCE = "default"
CHECK_S = 1.0
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_MAX_FILE_BYTES = 4096

Stamp = tuple[tuple[str, int, int, int], ...]


class Sources:
    """The secrets of every source, at this moment. `watch` is a loop for the supervisor."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.sources_dir
        self._fixed = {DEFAULT_SOURCE: settings.secrets} if settings.secrets else {}
        self._secrets: Mapping[str, tuple[str, ...]] = self._fixed
        self._stamp: Stamp = ()
        if self._folder is not None:
            self._first_read(self._folder)
        if not self._secrets and Role.INGEST in settings.roles:
            raise ConfigError(
                "no source has a secret: set BRIDGE_WEBHOOK_SECRET to the webhook's secret, or "
                "CAUSEWAY_SOURCES_DIR to a folder with a file for each source"
            )

    def secrets(self, source: str) -> tuple[str, ...] | None:
        """Return the source's secrets, the current one first, or None for an unknown source."""
        return self._secrets.get(source)

    def names(self) -> list[str]:
        """Return the names of all sources, sorted."""
        return sorted(self._secrets)

    async def watch(self) -> None:
        """Read the folder again whenever it has changed, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            if self._folder is not None:
                await asyncio.to_thread(self._read_if_changed, self._folder)

    def _first_read(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"CAUSEWAY_SOURCES_DIR={folder}: a folder was expected")
        errors = self._read_if_changed(folder)
        if errors:
            raise ConfigError(f"CAUSEWAY_SOURCES_DIR={folder}: {'; '.join(errors)}")

    def _read_if_changed(self, folder: Path) -> list[str]:
        """Take over the folder's state; return what could not be understood."""
        try:
            files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            stamp = tuple(_stamp(path) for path in files)
        except OSError as error:
            log.warning("sources folder unreadable", extra={"reason": error.strerror})
            return [str(error)]
        if stamp == self._stamp:
            return []
        read, errors = self._read(files)
        self._secrets, self._stamp = {**self._fixed, **read}, stamp
        log.info("sources read", extra={"sources": self.names()})
        return errors

    def _read(self, files: list[Path]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        read: dict[str, tuple[str, ...]] = {}
        errors = []
        for path in files:
            try:
                read[path.name] = self._read_file(path)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                errors.append(f"{path.name}: {reason}")
                log.error("source unreadable", extra={"source": path.name, "reason": reason})
                if path.name in self._secrets and path.name not in self._fixed:
                    read[path.name] = self._secrets[path.name]
        return read, errors

    def _read_file(self, path: Path) -> tuple[str, ...]:
        if path.name in self._fixed:
            raise ValueError("this source has its secret in BRIDGE_WEBHOOK_SECRET already")
        if not _NAME.fullmatch(path.name):
            raise ValueError("a source's name has 1 to 63 of a-z, 0-9, - and _")
        content = path.read_bytes()
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError("the file is too long to hold one or two secrets")
        try:
            return split_secrets(content.decode())
        except UnicodeDecodeError:
            raise ValueError("the file is not UTF-8 text") from None


def _stamp(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()  # follows the symlinks of a mounted Secret
    except FileNotFoundError:  # a link that leads nowhere: reading it says so, of this source alone
        return path.name, 0, 0, 0
    return path.name, status.st_ino, status.st_mtime_ns, status.st_size
