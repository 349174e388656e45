"""A process' wall clock that can be stepped, as by an operator's hand or a wrong time server.

    clock = Clock(folder)                       # needs Debian's libfaketime, see `missing`
    env = environment(**clock.environment())    # for the process that is to believe it
    clock.step(600); ...; clock.heal()

The monotonic clock goes on, as it does on a machine whose time is set.
"""

from pathlib import Path

LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"


class Clock:
    """What time a process believes it is: the machine's, and so many seconds more or less."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.heal()

    def environment(self) -> dict[str, str]:
        """Return what a process needs in its environment to go by this clock."""
        library = _library()
        assert library is not None, missing()
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: int) -> None:
        """Set the clock so much before (negative) or after the machine's, at once."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+d}s\n")
        written.rename(self._file)  # never half of it

    def heal(self) -> None:
        """Set the clock right."""
        self.step(0)


def missing() -> str | None:
    """Return what this machine lacks for it, or None."""
    return None if _library() else "libfaketime is not installed (Debian: faketime)"


def _library() -> Path | None:
    return next(iter(Path("/").glob(LIBRARIES.lstrip("/"))), None)
