"""`causeway serve`: the service, from the environment's settings to its exit code."""

from typing import Annotated

import typer

from service import config, logs
from service import serve as serving


def serve(
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Apply missing migrations first (small set-ups).")
    ] = False,
    roles: Annotated[
        str | None,
        typer.Option(
            help="Only these of ingest,stream,relay,admin,mirror; instead of CAUSEWAY_ROLES."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="So many processes share the port; instead of CAUSEWAY_WORKERS."),
    ] = None,
    tail: Annotated[
        str | None,
        typer.Option(help="Follow the log in postgres or in nats; instead of CAUSEWAY_TAIL."),
    ] = None,
) -> None:
    """Run the service. Settings come from the environment; the README lists them.

    Without DATABASE_URL an embedded Postgres is started, and stopped at the end.
    """
    given = {"CAUSEWAY_ROLES": roles, "CAUSEWAY_WORKERS": workers, "CAUSEWAY_TAIL": tail}
    settings = config.load(
        options={name: str(value) for name, value in given.items() if value is not None}
    )
    logs.configure(settings.log_level)
    raise typer.Exit(serving.serve(settings, is_migrating=migrate))
