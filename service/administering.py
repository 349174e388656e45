"""The assembly of what people look at: figures, what is wrong, the log's history, audits."""

from dataclasses import dataclass

from service.audits import Audits
from service.auth import Tokens
from service.consumer import Consumers
from service.db import Pool
from service.eventlog import EventLog
from service.follower import Follower
from service.history import History
from service.metrics import Metrics
from service.ops import Check
from service.overview import Overview
from service.sources import Sources
from service.standing import Standings
from service.stats import Stats
from service.supervise import Supervisor


@dataclass(frozen=True, slots=True)
class Administering:
    """The parts that endpoints and pages meet."""

    history: History
    stats: Stats
    overview: Overview
    audits: Audits
    standings: Standings


def open_administering(
    supervisor: Supervisor,
    database: Pool,
    *,
    metrics: Metrics,
    eventlog: EventLog,
    sources: Sources,
    consumers: Consumers,
    tokens: Tokens,
    follower: Follower,
    ready: dict[str, Check],
    standings: Standings,
) -> Administering:
    """Make the parts and start their loops."""
    history = History(database)
    stats = Stats(metrics, history, follower.head)
    overview = Overview(stats, history, sources, consumers, tokens, follower, ready, standings)
    audits = Audits(eventlog)
    supervisor.start("stats", stats.run)
    supervisor.start("audits", audits.run)
    return Administering(history, stats, overview, audits, standings)
