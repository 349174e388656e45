"""`causeway migrate`, `causeway audit`: the schema, and the proof that the log is whole."""

from typing import Annotated

import typer
from rich.console import Console

from service import config, operate, terminal


def migrate() -> None:
    """Bring the database's schema to this version. Run it as the owner, before the service."""
    applied = operate.migrate_database(config.load())
    terminal.write_line("\n".join(f"applied {name}" for name in applied) or "nothing to apply")


def audit(
    checkpoint: Annotated[
        str | None, typer.Option(help="Also prove that the log holds this: POSITION.LINK.")
    ] = None,
) -> None:
    """Prove that nothing in the log was changed, removed or put in; name the first bad position.

    And that every event which an outgoing webhook is owed is delivered, pending or exhausted.
    Prints a checkpoint to be kept elsewhere: a later audit can be held against it.
    """
    console = Console(stderr=True)
    with terminal.progress("audit", console) as on_progress:
        proof, webhooks = operate.audit_database(config.load(), checkpoint, on_progress)
    erased = f"; {proof.erased} of them are erased" if proof.erased else ""
    terminal.write_line(f"{proof.events} events are as they were appended{erased}")
    terminal.write_line(f"every event owed has its delivery, for {webhooks} outgoing webhooks")
    terminal.write_line(f"log {proof.bounds.log_id} checkpoint {proof.checkpoint}")
