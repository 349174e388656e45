"""The metrics of what a person must do before it hurts, and of what retention has done."""

from prometheus_client import CollectorRegistry, Gauge


class UpkeepMetrics:
    """Part of `Metrics`; `upkeep.py` keeps them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.database_bytes = Gauge(
            "causeway_database_bytes",
            "The size of the database on disk, the log and everything beside it.",
            registry=registry,
        )
        self.log_anchor = Gauge(
            "causeway_log_anchor_position",
            "The position before the first that is left: everything up to it is pruned.",
            registry=registry,
        )
        self.log_partitions = Gauge(
            "causeway_log_partitions", "Partitions that the log is in.", registry=registry
        )
        self.erased_events = Gauge(
            "causeway_erased_events",
            "Events whose bodies were erased; their places and links are kept.",
            registry=registry,
        )
        self.source_secrets = Gauge(
            "causeway_source_secrets",
            "Secrets that a source has: 2 while one is being changed.",
            ["source"],
            registry=registry,
        )
        self.secret_keys = Gauge(
            "causeway_secret_keys",
            "Keys in CAUSEWAY_SECRET_KEY: 2 while it is being changed.",
            registry=registry,
        )
