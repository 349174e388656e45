"""The way in: `causeway ...` and `python -m service ...`.

A known error becomes one sentence on standard error and exit 1. A plain install is for clients and
has no commands: it says what to install.
"""

import sys


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    try:
        from service import commands

        app = commands.assemble(sys.argv[1:2])
    except ModuleNotFoundError as missing:
        package = (missing.name or "service").partition(".")[0]
        if package == "service":
            raise
        sys.exit(f"{package} is missing: install the service with: pip install 'causeway[server]'")
    commands.run(app)


if __name__ == "__main__":
    main()
