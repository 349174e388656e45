"""The command line: which commands there are, and how one is run.

Each command reads its options and calls the module that does the work. Only the modules of the
command that is asked for are loaded: a small one does not wait for all that the service needs.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from service import __version__, terminal
from service.answers import SubscribeError
from service.errors import CausewayError

# Where each is, in the order of the help: a function, or the group of those below it.
COMMANDS = {
    "serve": "server_commands.serve",
    "migrate": "database_commands.migrate",
    "demo": "demo_commands.demo",
    "simulate": "traffic_commands.simulate",
    "tail": "traffic_commands.tail",
    "consumers": "consumer_commands.app",
    "replay": "replay_commands.replay",
    "token": "token_commands.app",  # nosec B105  # a module, no secret
    "audit": "database_commands.audit",
    "prune": "retention_commands.prune",
    "erase": "retention_commands.erase",
    "mirror": "mirror_commands.app",
    "openapi": "document_commands.openapi",
}


def assemble(wanted: Sequence[str] = ()) -> typer.Typer:
    """Return the command line with the one that is `wanted`; with all, if that is none of them.

    Raises ModuleNotFoundError for a package that a plain install lacks.
    """
    app = typer.Typer(
        help="Causeway: Bridge's webhooks, proven, kept in one order, and handed on.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,  # its tracebacks show locals: tokens and secrets among them
    )
    app.callback(invoke_without_command=True)(_show_version)
    for name in [name for name in wanted if name in COMMANDS] or COMMANDS:
        module, _, attribute = COMMANDS[name].partition(".")
        command = getattr(import_module(f"service.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def run(app: typer.Typer) -> None:
    """Run what the arguments of the process name, and exit with its code: 2 for wrong options."""
    try:
        app()
    except (CausewayError, SubscribeError) as error:
        terminal.warn(str(error))
        sys.exit(1)


def _show_version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Bridge's webhooks, proven, kept in one order, and handed on."""
    if version:
        terminal.write_line(f"causeway {__version__}")
        raise typer.Exit
