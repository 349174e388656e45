"""Options that several commands share: where the service is, as whom to ask it, what to send."""

from typing import Annotated

import typer

Url = Annotated[str, typer.Option(envvar="CAUSEWAY_URL", help="Where the service is.")]
LOCAL = "http://127.0.0.1:8000"
StreamToken = Annotated[
    str,
    typer.Option(
        envvar="CAUSEWAY_STREAM_TOKEN", show_default=False, help="A token with the scope `stream`."
    ),
]
Rate = Annotated[float, typer.Option(min=0.001, help="Events a second.")]
Count = Annotated[int | None, typer.Option(min=1, help="Stop after so many events.")]
