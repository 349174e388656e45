"""The system's user under whom the embedded Postgres runs; Postgres refuses to be root.

Root drops to another user: the owner of the data, else `postgres`, else `nobody`. Anybody else
stays who they are. No folder that Causeway did not make changes its permissions.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from service.errors import ConfigError

COMMAND_TIMEOUT_S = 120.0
FALLBACKS = ("postgres", "nobody")
# Nothing of our own environment, which may hold secrets, is handed on.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/bin:/usr/bin:/bin"}


@dataclass(frozen=True, slots=True)
class SystemUser:
    """A user, by number; `user` and `group` are None for the one we are."""

    name: str
    user: int | None = None
    group: int | None = None

    @classmethod
    def for_data(cls, data_dir: Path) -> Self:
        """Return who runs Postgres on `data_dir`, which must exist.

        Raises ConfigError if that user has no name, which initdb asks for.
        """
        if os.geteuid() != 0:
            return cls(str(os.geteuid()))
        owners = [path.stat().st_uid for path in (data_dir / "postgres", data_dir) if path.exists()]
        owner = next((uid for uid in owners if uid != 0), None)
        entry = _entry(*FALLBACKS) if owner is None else _entry(owner)
        if entry is None:
            wanted = " or ".join(FALLBACKS) if owner is None else f"its owner, number {owner}"
            raise ConfigError(
                f"CAUSEWAY_DATA_DIR={data_dir}: Postgres cannot run as root, and the user it would "
                f"run as, {wanted}, has no name on this system"
            )
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @property
    def groups(self) -> list[int] | None:
        """The further groups: none for another user, all of ours for ourselves."""
        return None if self.user is None else []

    def run(self, *command: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run `command` as this user to its end, with `text` on its input.

        Raises PermissionError if this user may not execute it.
        """
        return subprocess.run(  # noqa: S603  (our own binaries, no shell)
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd="/",
            env=ENVIRONMENT,
            timeout=COMMAND_TIMEOUT_S,
            user=self.user,
            group=self.group,
            extra_groups=self.groups,
        )

    def check_reach(self, data_dir: Path) -> None:
        """Raise ConfigError naming the outermost folder that keeps this user from `data_dir`."""
        if self.user is None or self._may_enter(data_dir):
            return
        way = reversed((data_dir, *data_dir.parents))
        closed = next((folder for folder in way if not self._may_enter(folder)), data_dir)
        raise ConfigError(
            f"CAUSEWAY_DATA_DIR={data_dir}: the user {self.name}, who runs Postgres, may not enter "
            f"{closed}: set CAUSEWAY_DATA_DIR to another folder, or run `chmod o+x {closed}`"
        )

    def make_folder(self, folder: Path) -> Path:
        """Make `folder` for this user alone, or find it so.

        Raises ConfigError if it is a link, or another user made it (in /tmp anybody could).
        """
        own = os.geteuid() if self.user is None else self.user
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid not in (own, os.geteuid()) or found.st_mode & 0o077:
            raise ConfigError(f"{folder} must be a folder of the user {self.name} alone: remove it")
        if found.st_uid != own:
            os.chown(folder, own, -1 if self.group is None else self.group, follow_symlinks=False)
        return folder

    def _may_enter(self, folder: Path) -> bool:
        # The kernel is asked, as the mode's bits are not the whole truth (access lists).
        return self.run("/bin/sh", "-c", 'test -x "$1"', "sh", folder).returncode == 0


def _entry(*keys: str | int) -> pwd.struct_passwd | None:
    for key in keys:
        try:
            return pwd.getpwnam(key) if isinstance(key, str) else pwd.getpwuid(key)
        except KeyError:
            continue
    return None
