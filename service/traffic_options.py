"""The options of the commands that send events: `demo` and `simulate`."""

from typing import Annotated

import typer

Rate = Annotated[float, typer.Option(min=0.001, help="Events a second.")]
Count = Annotated[int | None, typer.Option(min=1, help="Stop after so many events.")]
