"""The registry of faults: by name, and which of them this machine can do."""

from collections.abc import Iterable, Mapping

from tests.chaos import (
    database_faults,
    disk_faults,
    failover_faults,
    network_faults,
    replica_faults,
)
from tests.chaos.fault import Fault

FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for faults in (replica_faults, database_faults, network_faults, failover_faults, disk_faults)
    for fault in faults.FAULTS
}


def choose(names: Iterable[str] = ()) -> tuple[dict[str, Fault], dict[str, str]]:
    """Return the faults of these names (none: all) that can be done here, and why the others can't.

    Raises ValueError for a name that there is not.
    """
    wanted = list(names) or list(FAULTS)
    if unknown := sorted(set(wanted) - FAULTS.keys()):
        raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    reasons = {name: FAULTS[name].missing() for name in wanted}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    return {name: FAULTS[name] for name in wanted if name not in skipped}, skipped
