"""Images built where no registry of images is reached: Debian's debootstrap, and buildah.

`bootstrap` makes a base from Debian's own packages, `Buildah` builds on it and runs the result in a
chroot, without a daemon. Packages of Python come from wherever this machine's pip takes them: that
configuration is mounted for the build, and is never part of the image.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUILD_S = 1800.0
TIMESTAMP = "1700000000"
PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "cert")


def bootstrap(folder: Path, *packages: str) -> None:
    """Put the smallest Debian of this machine's release, and `packages`, into `folder`."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    included = f"--include={','.join(packages)}"
    _run("debootstrap", "--variant=minbase", included, suite, str(folder))


@dataclass(frozen=True, slots=True)
class Buildah:
    """Images and containers in a folder of their own."""

    folder: Path

    def __call__(self, *arguments: str) -> str:
        """Run one command; return what it printed. Fails the test if it fails."""
        return _run(*self.command(*arguments)).strip()

    def command(self, *arguments: str) -> list[str]:
        """Return the command line; containers are plain folders, so that no mount is left over."""
        places = ("--root", str(self.folder / "store"), "--runroot", str(self.folder / "run"))
        return ["buildah", "--storage-driver", "vfs", *places, *arguments]

    def commit_folder(self, folder: Path, image: str) -> None:
        """Make an image of one layer from `folder`."""
        container = self("from", "scratch")
        self("add", "--quiet", container, str(folder), "/")
        self("commit", "--quiet", container, image)
        self("rm", container)

    def build(self, image: str, *, base: str) -> None:
        """Build the repository's Dockerfile on `base`, as if nothing had been built before."""
        mounts = [
            part for mount in _pip_mounts(self.folder) for part in ("--volume", f"{mount}:ro")
        ]
        options = ("--isolation", "chroot", "--format", "docker", "--timestamp", TIMESTAMP)
        arguments = ("--build-arg", f"BASE={base}", "--file", "Dockerfile", "--tag", image)
        self("build", "--no-cache", *options, *mounts, *arguments, str(ROOT))

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what docker would know of the image."""
        described: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["Docker"]
        return described


def _pip_mounts(folder: Path) -> list[str]:
    """Return mounts that give the build's pip this machine's index, proxy and certificates."""
    config = _run(sys.executable, "-m", "pip", "config", "list")
    found: dict[str, str] = {}
    for line in config.splitlines():
        name, _, value = line.partition("=")
        if (key := name.rpartition(".")[2]) in PIP_KEYS:
            found.setdefault(key, value.strip("'"))
    remote = {key: value for key, value in found.items() if "file:" not in value}
    (folder / "pip.conf").write_text(
        "[global]\n" + "".join(f"{key} = {value}\n" for key, value in remote.items())
    )
    certificates = [remote["cert"]] if "cert" in remote else []
    return [f"{folder / 'pip.conf'}:/etc/pip.conf", *(f"{path}:{path}" for path in certificates)]


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_S, env=os.environ, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout
