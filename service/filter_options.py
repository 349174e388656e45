"""The options with which commands name a filter."""

from typing import Annotated

import typer

Types = Annotated[
    list[str] | None, typer.Option("--type", help="Only this type, or item.* (repeatable).")
]
ItemIds = Annotated[list[int] | None, typer.Option(help="Only this item (repeatable).")]
AccountIds = Annotated[list[int] | None, typer.Option(help="Only this account (repeatable).")]
UserUuids = Annotated[list[str] | None, typer.Option(help="Only this user (repeatable).")]
Sources = Annotated[list[str] | None, typer.Option(help="Only from this source (repeatable).")]
