"""The metrics of several workers as one text, each series with a label `worker`. Pure.

Nothing is summed up here: to Prometheus a worker is what a replica is. A counter of a worker that
died begins anew as its own series does, a histogram stays whole, and a gauge that is the same in
every process (the log's head, a consumer's lag) is not multiplied. Queries that are right for many
replicas, `sum by` and `max by` what they ask about, are right for many workers. The multiprocess
mode of prometheus_client knows neither collectors of our own nor gauges that are functions.
"""

from collections.abc import Mapping

LABEL = "worker"


def merge(texts: Mapping[int, str]) -> str:
    """Return one text of Prometheus' format of `texts`, by worker: each family stands once."""
    heads: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    for worker, text in sorted(texts.items()):
        family = ""
        is_new = False
        for line in filter(None, text.split("\n")):  # a label may hold what else ends lines
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                is_new = family not in heads
                heads.setdefault(family, [])
                series.setdefault(family, [])
            if not line.startswith("#"):
                series[family].append(_labelled(line, worker))
            elif is_new:
                heads[family].append(line)
    return "".join(
        f"{line}\n" for family, head in heads.items() for line in (*head, *series[family])
    )


def _labelled(line: str, worker: int) -> str:
    """Return a sample's line with the label; a name holds neither a brace nor a space."""
    label = f'{LABEL}="{worker}"'
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}"
