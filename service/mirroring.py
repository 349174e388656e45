"""The mirror's part of the assembly: for processes with the role `mirror`."""

from service.base import Base
from service.erase import Erasures
from service.errors import ConfigError
from service.eventlog import EventLog
from service.listen import Listener
from service.mirror import Mirror
from service.mirror_lease import MirrorLease
from service.nats import check_login


def start_mirroring(base: Base) -> Mirror:
    """Start the mirror's loops. Raises ConfigError if it is not said how to reach NATS."""
    settings, direct_dsn = base.settings, base.database.direct_dsn
    if not settings.nats_urls:
        raise ConfigError("CAUSEWAY_NATS_URL is not set: the role mirror needs it")
    check_login(settings)
    mirror = Mirror(
        settings,
        EventLog(base.database.tail),
        Erasures(base.database.readers),
        MirrorLease(direct_dsn, settings.nats_stream, settings.poll_s),
        base.metrics.mirror,
        poll_s=settings.poll_s,
    )
    base.supervisor.start("mirror", mirror.run)
    base.supervisor.start("mirror_listen", Listener(direct_dsn, mirror.hear).run)
    return mirror
