"""Each alert fires when it should and not before, and says where its runbook is.

promtool plays series to the rules. Annotations are left out there, and read here.
"""

# ruff: noqa: E501  (a case is a row)
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.conftest import need_program
from tests.k8s import K8S, ROOT, run

RULES = yaml.safe_load((K8S / "components/monitoring/rules.yaml").read_text())["spec"]
ALERTS = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
}
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
UP = ('up{job="causeway"}', "1x6000")
CALLS = "causeway_webhooks_received_total"
ANSWERS = "causeway_webhook_response_seconds"
DELIVERIES = "causeway_delivery_seconds"
READY = "kube_deployment_status_replicas_available"
AUDIT, CRON = "kube_cronjob", 'cronjob="causeway-audit"'
MIGRATE = 'job_name="causeway-migrate-1"'
DISK = "kubelet_volume_stats"
BACKUP = "barman_cloud_cloudnative_pg_io_last_available_backup_timestamp"
ARCHIVER = "cnpg_pg_stat_archiver_last"
PRIMARY = '{namespace="c",pod="causeway-postgres-1"}'
CLAIM = '{namespace="causeway",persistentvolumeclaim="data-causeway-postgres-0"}'


@dataclass(frozen=True, slots=True)
class Case:
    """Series by the minute; when the alert is quiet still, when it fires, and for whom."""

    alert: str
    series: tuple[tuple[str, str], ...]
    quiet_at: str
    fires_at: str
    labels: dict[str, str] = field(default_factory=dict)


def slow(name: str, le: str, bad_from: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    """Return a histogram's counts: all good at first, then `bad_from` is the good ones' course."""
    good = f'{name}_bucket{{{labels}le="{le}"}}'
    count = f"{name}_count{{{labels.rstrip(',')}}}"
    return ((good, bad_from), (count, "0+600x6000"))


CASES = (
    Case("CausewayDown", (('up{job="causeway",pod="a"}', "1x10 0x20"),), "10m", "14m"),
    Case("CausewayNotReady", ((f'{READY}{{namespace="c",deployment="causeway-ingest"}}', "3x10 0x20"), (f'{READY}{{namespace="c",deployment="causeway-stream"}}', "2x30")), "11m", "14m", {"namespace": "c", "deployment": "causeway-ingest"}),
    Case("CausewayNoEvents", (UP, (f'{CALLS}{{outcome="accepted"}}', "0+1x30 30x400")), "100m", "170m"),
    Case(
        "CausewaySignatureFailures",
        (
            (f'{CALLS}{{source="default",outcome="accepted"}}', "0+60x100"),
            (f'{CALLS}{{source="default",outcome="bad_signature"}}', "0x20 0+10x80"),
            (f'{CALLS}{{source="acme",outcome="bad_signature"}}', "0x20 1x80"),
        ),
        "25m",
        "50m",
        {"source": "default"},
    ),
    Case("CausewayAppendFailing", ((f'{CALLS}{{outcome="log_unavailable"}}', "0x10 0+5x50"),), "10m", "20m"),
    Case("CausewayTailBehind", (('causeway_tail_lag_events{pod="a"}', "10x10 5000x20"),), "11m", "15m", {"pod": "a"}),
    Case("CausewayLogDamaged", (('causeway_log_damaged{pod="a"}', "0x5 1x5"),), "5m", "7m", {"pod": "a"}),
    Case("CausewayAuditFailed", (('kube_job_failed{job_name="causeway-audit-1",condition="true"}', "_x6 1x5"),), "5m", "7m", {"job_name": "causeway-audit-1"}),
    Case("CausewayAuditMissing", ((f"{AUDIT}_status_last_successful_time{{{CRON}}}", "0x16000"), (f"{AUDIT}_created{{{CRON}}}", "0x16000")), "12900m", "13100m"),
    Case("CausewayPruneFailed", (('kube_job_failed{job_name="causeway-prune-1",condition="true"}', "_x6 1x5"),), "5m", "7m", {"job_name": "causeway-prune-1"}),
    Case("CausewayMigrationFailed", (('kube_job_status_failed{job_name="causeway-migrate-1"}', "0+1x10"),), "3m", "5m", {"job_name": "causeway-migrate-1"}),
    Case("CausewayLoopRestarts", (('kube_pod_container_status_restarts_total{pod="a",container="causeway"}', "0x10 0+1x30"),), "10m", "30m", {"pod": "a"}),
    Case("CausewayConsumerLag", (('causeway_consumer_lag_seconds{consumer="billing",pod="a"}', "0+60x60"),), "12m", "20m", {"consumer": "billing"}),
    Case("CausewayRelayBacklog", (('causeway_relay_oldest_pending_seconds{webhook="7",pod="a"}', "0+60x60"),), "18m", "25m", {"webhook": "7"}),
    Case("CausewayRelayExhausted", (("causeway_relay_exhausted_total", "0x10 3x20"),), "10m", "15m"),
    Case("CausewayRelayWebhookDisabled", (('causeway_relay_disabled_total{reason="gone"}', "0x10 1x20"),), "10m", "15m", {"reason": "gone"}),
    Case("CausewayRelayOrphans", (('causeway_relay_orphans{webhook="7"}', "0x5 2x5"),), "5m", "7m", {"webhook": "7"}),
    Case("CausewayMirrorStopped", (('causeway_mirror_misfit{stream="S",pod="a"}', "0x5 1x9"), ('causeway_mirror_misfit{stream="S",pod="b"}', "0x20")), "6m", "8m", {"stream": "S"}),
    Case("CausewayMirrorNobody", (('causeway_mirror_active{stream="S",pod="a"}', "1x10 0x20"), ('causeway_mirror_active{stream="S",pod="b"}', "0x30")), "14m", "18m", {"stream": "S"}),
    Case("CausewayMirrorBehind", (('causeway_mirror_lag_seconds{stream="S",pod="a"}', "0x10 61x20"),), "14m", "18m", {"stream": "S"}),
    Case("CausewayTailFellBack", (('causeway_tail_source{source="postgres",pod="a"}', "0x10 1x30"),), "19m", "23m"),
    Case(
        "CausewayTailMisled",
        (
            ('causeway_tail_fallbacks_total{reason="misfit",pod="a"}', "0x10 1x10"),
            ('causeway_tail_fallbacks_total{reason="away",pod="a"}', "0x5 9x15"),
        ),
        "9m",
        "13m",
        {"reason": "misfit"},
    ),
    Case(
        "CausewayDatabaseNearFull",
        ((f"{DISK}_available_bytes{CLAIM}", "50x10 10x20"), (f"{DISK}_capacity_bytes{CLAIM}", "100x30")),
        "12m",
        "20m",
        {"namespace": "causeway", "persistentvolumeclaim": "data-causeway-postgres-0"},
    ),
    Case(
        "CausewayDatabaseFullSoon",
        ((f"{DISK}_available_bytes{CLAIM}", "9000x400 9000-2x600"), ("causeway_database_bytes", "5x1000")),
        "400m",
        "900m",
    ),
    Case(
        "CausewayCertificateExpires",
        (('certmanager_certificate_expiration_timestamp_seconds{namespace="causeway",name="causeway-bridge"}', "1382400x6000"),),
        "2900m",
        "3000m",
        {"namespace": "causeway", "name": "causeway-bridge"},
    ),
    Case("CausewayBackupOld", ((f"cnpg_collector_up{PRIMARY}", "1x3000"), (f"{BACKUP}{PRIMARY}", "600x3000"), (f'{BACKUP}{{namespace="c",pod="causeway-postgres-2"}}', "0x3000")), "2220m", "2240m", {"namespace": "c"}),
    Case(
        "CausewayArchivingFailing",
        ((f"{ARCHIVER}_failed_time{PRIMARY}", "-1x10 660x60"), (f"{ARCHIVER}_archived_time{PRIMARY}", "1+60x10 601x60"), (f"cnpg_pg_replication_in_recovery{PRIMARY}", "0x70")),
        "20m",
        "23m",
        {"namespace": "c", "pod": "causeway-postgres-1"},
    ),
    Case("CausewaySecretRotationHalfDone", (('causeway_source_secrets{source="default"}', "1x10 2x4000"),), "2800m", "2900m", {"source": "default"}),
    Case("CausewaySecretKeyRotationHalfDone", (("causeway_secret_keys", "1x10 2x4000"),), "2800m", "2900m"),
    # Two in a hundred are slow for twenty minutes; for a day, four in a thousand.
    Case("CausewayAnswersBurnFast", slow(ANSWERS, "1.0", "0+600x60 36600+588x200"), "60m", "120m"),
    Case("CausewayAnswersBurnSlow", slow(ANSWERS, "1.0", "0+600x60 36600+597.6x5000"), "60m", "2000m"),
    Case("CausewayDeliveriesBurnFast", slow(DELIVERIES, "0.25", "0+600x60 36600+400x200", 'via="stream",'), "60m", "120m"),
    Case("CausewayDeliveriesBurnSlow", slow(DELIVERIES, "0.25", "0+600x60 36600+576x5000", 'via="stream",'), "60m", "2000m"),
)  # fmt: skip

# What makes no series, or takes one away, is no all-clear.
ALSO = (
    Case("CausewayDown", (), "1m", "4m"),
    Case("CausewayNotReady", ((f'{READY}{{namespace="c",deployment="causeway"}}', "2x10 0x20"), (UP[0], "0x9 _x21")), "11m", "14m", {"namespace": "c", "deployment": "causeway"}),
    Case("CausewayNoEvents", (UP,), "8m", "12m"),
    Case("CausewayBackupOld", ((f"{BACKUP}{PRIMARY}", "0x3000"),), "2210m", "2230m", {"namespace": "c"}),
    Case("CausewayBackupOld", ((f"cnpg_collector_up{PRIMARY}", "1x100"),), "58m", "62m", {"namespace": "c"}),
    Case("CausewayArchivingFailing", ((f"{ARCHIVER}_failed_time{PRIMARY}", "1x20"), (f"{ARCHIVER}_archived_time{PRIMARY}", "-1x20")), "8m", "12m", {"namespace": "c", "pod": "causeway-postgres-1"}),
    Case("CausewayAuditMissing", ((f"{AUDIT}_created{{{CRON}}}", "0x16000"),), "12900m", "13100m"),
    Case(
        "CausewayMigrationFailed",
        (
            (f'kube_job_status_failed{{{MIGRATE},reason="BackoffLimitExceeded"}}', "_x9 1x20"),
            (f'kube_job_failed{{{MIGRATE},condition="true"}}', "_x9 1x20"),
        ),
        "8m",
        "20m",
        {"job_name": "causeway-migrate-1"},
    ),
)  # fmt: skip

# A job that was tried again, and then did what it had to.
SETTLED = tuple(
    Case(alert, ((f'kube_job_status_failed{{job_name="causeway-{job}-1",reason=""}}', "0x5 1x20"), (f'kube_job_complete{{job_name="causeway-{job}-1",condition="true"}}', "_x9 1x20")), "15m", "")
    for alert, job in (("CausewayAuditFailed", "audit"), ("CausewayPruneFailed", "prune"), ("CausewayMigrationFailed", "migrate"))
)  # fmt: skip


def needed_by(alert: str) -> dict[str, object]:
    """Return the alert's rule without annotations, and what is recorded for it: no more, for speed."""
    rule = {key: value for key, value in ALERTS[alert].items() if key != "annotations"}
    recorded = [group for group in RULES["groups"] if "record" in group["rules"][0]]
    is_burn = "causeway:" in rule["expr"]
    return {"groups": [*(recorded if is_burn else []), {"name": "alert", "rules": [rule]}]}


def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    options = ("check", "rules", "--lint-fatal", str(tmp_path / "rules.yaml"))
    assert "SUCCESS" in run([need_program("promtool"), *options])


def test_every_alert_has_a_case() -> None:
    assert sorted(ALERTS) == sorted(case.alert for case in CASES)


@pytest.mark.parametrize("case", CASES + ALSO, ids=lambda case: case.alert)
def test_it_fires_when_it_should_and_not_before(tmp_path: Path, case: Case) -> None:
    labels = {"severity": ALERTS[case.alert]["labels"]["severity"]} | case.labels
    play(tmp_path, case, {case.quiet_at: [], case.fires_at: [{"exp_labels": labels}]})


@pytest.mark.parametrize("case", SETTLED, ids=lambda case: case.alert)
def test_a_job_that_did_it_at_the_second_try_wakes_nobody(tmp_path: Path, case: Case) -> None:
    play(tmp_path, case, {case.quiet_at: []})


def test_an_instance_that_was_the_primary_once_wakes_nobody(tmp_path: Path) -> None:
    times = (
        (f"{ARCHIVER}_failed_time{PRIMARY}", "660x60"),
        (f"{ARCHIVER}_archived_time{PRIMARY}", "601x60"),
    )
    standing_by = (f"cnpg_pg_replication_in_recovery{PRIMARY}", "1x60")
    play(tmp_path, Case("CausewayArchivingFailing", (*times, standing_by), "30m", ""), {"30m": []})


def play(tmp_path: Path, case: Case, expected: dict[str, list[dict[str, object]]]) -> None:
    """Let promtool play the case's series, and look at its alert at some times."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series],
        "alert_rule_test": [
            {"alertname": case.alert, "eval_time": time, "exp_alerts": alerts}
            for time, alerts in expected.items()
        ],
    }
    text = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(needed_by(case.alert)))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(text))
    run([need_program("promtool"), "test", "rules", "test.yaml"], cwd=tmp_path)


def test_every_alert_has_a_section_in_the_runbook_and_no_other_is_there() -> None:
    sections = re.findall(r"^### (Causeway\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        annotations = rule["annotations"]
        assert annotations["runbook_url"].endswith(f"#{name.lower()}")
        assert annotations["summary"]
        assert annotations["description"]
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_each_section_says_what_it_means_what_to_look_at_and_what_to_do(name: str) -> None:
    section = RUNBOOK.split(f"\n### {name}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    for heading in ("**Means.**", "**Look.**", "**Do.**"):
        assert heading in section
