"""Numbers and times in words, for people. Pure."""

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def span(seconds: float) -> str:
    """Return a length of time with two digits that mean something: `12 s`, `3 h`, `2 d 4 h`."""
    for n, (length, unit) in enumerate(_UNITS):
        if seconds >= length:
            whole = int(seconds // length)
            below, name = _UNITS[n + 1] if n + 1 < len(_UNITS) else (1.0, "s")
            rest = int(seconds % length // below)
            return f"{whole} {unit}" + (f" {rest} {name}" if rest and whole < 10 else "")
    if seconds >= 1:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def number(value: float) -> str:
    """Return a number with its thousands set apart."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:,.1f}"


def size(bytes_: float) -> str:
    """Return a size in bytes, kB, MB, GB or TB."""
    value, unit = float(bytes_), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def count(value: float, noun: str) -> str:
    """Return a number with its noun: `1 event`, `42 events`."""
    return f"{number(value)} {noun}" + ("" if value == 1 else "s")
