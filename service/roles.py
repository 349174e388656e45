"""What a process does: the roles that it has. Pure.

Every process can have all of them, and has all but `mirror` by default. Apart, the load of one
cannot slow another: a fan-out to thousands of streams delays no 200. Any number of processes may
have the same role.
"""

from enum import StrEnum


class Role(StrEnum):
    """`ingest` takes Bridge's webhooks, `stream` serves readers, `relay` calls callbacks.

    `admin` serves `/api`, which needs the database alone. `mirror` copies the log into NATS.
    """

    INGEST = "ingest"
    STREAM = "stream"
    RELAY = "relay"
    ADMIN = "admin"
    MIRROR = "mirror"


Roles = frozenset[Role]
# What a process does where nobody said: the mirror needs a NATS to mirror into.
ALL: Roles = frozenset(Role) - {Role.MIRROR}


def parse_roles(text: str) -> Roles:
    """Return the roles in a comma-separated text. Raises ValueError for none or an unknown one."""
    names = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(names - set(Role))
    if unknown or not names:
        was = f", not {unknown[0]!r}" if unknown else ""
        raise ValueError(f"some of {', '.join(Role)}, comma-separated, were expected{was}")
    return frozenset(map(Role, names))


def spell(roles: Roles) -> str:
    """Return roles as `parse_roles` takes them, always in the same order."""
    return ",".join(role for role in Role if role in roles)
