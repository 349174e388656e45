"""How much a run measures: the full one for figures, a quick one to develop, a smoke run to test.

Pure values. A smaller effort gives the same figures with more noise; none changes what is measured.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """The size of each measurement. `rounds`: how often each contender has its turn."""

    name: str
    rounds: int
    append_batches: int  # in one turn at the most
    append_events: int  # in one turn at the most
    ingest_s: int
    ingest_connections: int
    subscribers: int
    single_events: int  # to each subscriber, in one turn
    bursts: int  # of 50 events, to each subscriber, in one turn
    idle_streams: int
    end_s: float
    end_subscribers: int
    end_rate: int  # webhooks in a second
    commits: int
    log_rows: int
    lookups: int
    ack_connections: int
    ack_s: float
    ack_events: int  # that were sent, and are acknowledged again and again
    relay_events: int  # in one turn
    relay_s: float
    relay_pending: int
    soak_s: float
    soak_subscribers: int
    idle_subscribers: int
    idle_s: float
    storm_subscribers: int
    storm_events: int  # that they have missed
    storm_while_s: float
    overload_s: float
    overload_connections: int
    gateway_counts: tuple[int, ...]
    gateway_s: float  # in one turn
    gateway_rate: int  # events in a second
    mirror_events: int
    mirror_singles: int  # in one turn


FULL = Effort(
    name="full",
    rounds=5,
    append_batches=1000,
    append_events=40_000,
    ingest_s=4,
    ingest_connections=256,
    subscribers=500,
    single_events=1000,
    bursts=50,
    idle_streams=2000,
    end_s=10.0,
    end_subscribers=100,
    end_rate=1000,
    commits=1000,
    log_rows=5_000_000,
    lookups=400,
    ack_connections=1024,
    ack_s=4.0,
    ack_events=100_000,
    relay_events=20_000,
    relay_s=10.0,
    relay_pending=100_000,
    soak_s=600.0,
    soak_subscribers=500,
    idle_subscribers=10000,
    idle_s=15.0,
    storm_subscribers=2000,
    storm_events=1000,
    storm_while_s=2.0,
    overload_s=8.0,
    overload_connections=2000,
    gateway_counts=(1, 2, 4, 8),
    gateway_s=5.0,
    gateway_rate=100,
    mirror_events=100_000,
    mirror_singles=500,
)
QUICK = Effort(
    name="quick",
    rounds=3,
    append_batches=300,
    append_events=10_000,
    ingest_s=2,
    ingest_connections=256,
    subscribers=500,
    single_events=300,
    bursts=40,
    idle_streams=1000,
    end_s=4.0,
    end_subscribers=100,
    end_rate=1000,
    commits=300,
    log_rows=200_000,
    lookups=100,
    ack_connections=1024,
    ack_s=2.0,
    ack_events=40_000,
    relay_events=10_000,
    relay_s=4.0,
    relay_pending=100_000,
    soak_s=20.0,
    soak_subscribers=500,
    idle_subscribers=10000,
    idle_s=6.0,
    storm_subscribers=2000,
    storm_events=1000,
    storm_while_s=2.0,
    overload_s=3.0,
    overload_connections=2000,
    gateway_counts=(1, 4),
    gateway_s=3.0,
    gateway_rate=100,
    mirror_events=20_000,
    mirror_singles=300,
)
SMOKE = Effort(
    name="smoke",
    rounds=1,
    append_batches=2,
    append_events=1000,
    ingest_s=1,
    ingest_connections=8,
    subscribers=3,
    single_events=5,
    bursts=2,
    idle_streams=10,
    end_s=0.5,
    end_subscribers=2,
    end_rate=100,
    commits=5,
    log_rows=2_000,
    lookups=3,
    ack_connections=8,
    ack_s=0.5,
    ack_events=500,
    relay_events=500,
    relay_s=0.2,
    relay_pending=1000,
    soak_s=1.0,
    soak_subscribers=5,
    idle_subscribers=20,
    idle_s=0.5,
    storm_subscribers=10,
    storm_events=60,
    storm_while_s=0.5,
    overload_s=0.3,
    overload_connections=200,
    gateway_counts=(1,),
    gateway_s=0.5,
    gateway_rate=50,
    mirror_events=500,
    mirror_singles=5,
)
