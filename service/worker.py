"""One worker of `serve --workers N`: `python -m service.worker`, started by `workers.py` alone.

Its brief is its argument, its sockets are inherited, and the end of its input means that its parent
is gone: then it stops in order, with exit code 1.
"""

import sys

from service import config, logs, serve, terminal
from service.errors import CausewayError
from service.workers import COULD_NOT_START, Brief


def main() -> None:
    """Serve until the parent says so, or is gone; exit with the code of `serve`."""
    brief = Brief.parse(sys.argv[1])
    try:
        options = {"CAUSEWAY_ROLES": brief.roles, "CAUSEWAY_TAIL": brief.tail}
        settings = config.load(options=options)
        logs.configure(settings.log_level, worker=brief.number)
        code = serve.serve_worker(settings, brief)
    except CausewayError as error:
        terminal.warn(f"worker {brief.number}: {error}")
        code = COULD_NOT_START
    sys.exit(code)


if __name__ == "__main__":
    main()
