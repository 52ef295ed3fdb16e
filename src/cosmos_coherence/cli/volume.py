"""The parser of ``cosmos volume``: looking after volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

volume = typer.Typer(help="Look after volumes: sizes, forecasts, copies, owners, clean-up.", rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As the Compose file or the engine calls it.")]


# ------------------------------------------------------------------------------------------------- what only looks
@volume.command("list")
def list_(as_json: Json = False) -> None:
    """List the volumes: size, files, users, growth, last backup, last proof."""
    from cosmos_coherence.cli import volume_look as verbs

    _finish(verbs.list_volumes(as_json=as_json))


@volume.command()
def inspect(name: Name, as_json: Json = False) -> None:
    """Show one volume: driver, options, labels, place, size, users, disk."""
    from cosmos_coherence.cli import volume_look as verbs

    _finish(verbs.inspect(name, as_json=as_json))


@volume.command()
def usage(
    name: Name,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw it, as SVG, into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show what takes the room in a volume: by folder, the largest files, by age."""
    from cosmos_coherence.cli import volume_look as verbs

    _finish(verbs.usage(name, picture=picture, as_json=as_json))


@volume.command()
def forecast(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this one.")] = "", as_json: Json = False
) -> None:
    """Show how fast volumes grow and in how many days their disk is full, each with a range."""
    from cosmos_coherence.cli import volume_look as verbs

    _finish(verbs.forecast(name, as_json=as_json))


def _finish(status: int) -> None:
    raise typer.Exit(status)
