"""`causeway prune`, `causeway erase`: what a person, or a CronJob, says and sees."""

import uuid
from datetime import timedelta
from typing import Annotated

import typer

from service import config, operate, terminal
from service.prune import Pruning, Rule
from service.retention_settings import MAX_DAYS, parse_size

Days = Annotated[
    float | None,
    typer.Option("--older-than", min=0, max=MAX_DAYS, help="Days. Default: CAUSEWAY_RETENTION_S."),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--keep-bytes",
        help="The log's size on disk, as 500GB or in bytes. Default: CAUSEWAY_RETENTION_BYTES.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Go past those who still need it; say whom it left behind.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


def prune(
    older_than: Days = None, keep_bytes: Size = None, force: Force = False, dry_run: DryRun = False
) -> None:
    """Take the oldest partitions out of the log, by age or by size. Run it as the owner.

    Whole partitions go, and never what Bridge may still send again (CAUSEWAY_DUPLICATE_WINDOW_S).
    It stops before the first that a named consumer, an enabled webhook, a replay or a pending or
    exhausted delivery still needs, names them, and exits with 1. With --force consumers that are
    left behind get 410, webhooks are disabled with `position_pruned`.
    """
    settings = config.load()
    rule = Rule(
        _age(older_than, settings.retention_s),
        settings.retention_bytes if keep_bytes is None else _bytes(keep_bytes),
        timedelta(seconds=settings.duplicate_window_s),
    )
    if rule.older_than is None and rule.keep_bytes is None:
        raise typer.BadParameter(
            "say --older-than or --keep-bytes, or set CAUSEWAY_RETENTION_S or "
            "CAUSEWAY_RETENTION_BYTES: the log is kept for ever otherwise"
        )
    pruning = operate.prune_database(settings, rule, is_forced=force, is_dry_run=dry_run)
    for line in _lines(pruning, dry_run):
        terminal.write_line(line)
    raise typer.Exit(1 if pruning.is_held else 0)


def erase(
    user_uuid: Annotated[uuid.UUID, typer.Argument(help="The user, as Bridge names it.")],
    reason: Annotated[
        str, typer.Option(help="Why; it is written down, so no personal data.")
    ] = "request",
    by: Annotated[str, typer.Option(help="Who asked for it; it is written down.")] = "operator",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the events.")] = False,
) -> None:
    """Erase a user's events: bodies and what was read out of them; the chain still verifies.

    Readers get a tombstone in place of each, of type `causeway.erased`; running services let go
    of what they hold in memory within CAUSEWAY_POLL_S.
    """
    erasure = operate.erase_user(
        config.load(), str(user_uuid), reason=reason, by=by, is_dry_run=dry_run
    )
    if dry_run:
        terminal.write_line(f"would erase {erasure.events} events")
    elif erasure.number is None:
        terminal.write_line("nothing to erase")
    else:
        terminal.write_line(f"erased {erasure.events} events, erasure {erasure.number}")


def _age(days: float | None, retention_s: int | None) -> timedelta | None:
    if days is not None:
        return timedelta(days=days)
    return None if retention_s is None else timedelta(seconds=retention_s)


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"--keep-bytes: {error}") from error


def _lines(pruning: Pruning, is_dry_run: bool) -> list[str]:
    verb = "would prune" if is_dry_run else "pruned"
    lines = [
        f"{verb} positions {max(1, it.first_position)} to {it.end_position - 1}, "
        f"{it.bytes / 1e6:,.0f} MB, received until {it.last_received_at:%Y-%m-%d %H:%M}Z"
        for it in pruning.gone
    ]
    if not lines and not pruning.is_held:
        lines = ["nothing to prune"]
    said = "held back by" if pruning.is_held else "left behind"
    return [*lines, *(f"{said} {it}" for it in pruning.behind)]
