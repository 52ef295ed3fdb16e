"""The parser of ``cosmos volume``: looking after volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

volume = typer.Typer(help="Look after volumes: sizes, forecasts, copies, owners, clean-up.", rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask no questions.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")]
WithoutBackup = Annotated[bool, typer.Option("--without-backup", help="Though no backup holds what is in it.")]
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


# ----------------------------------------------------------------------------------------------- what changes volumes
@volume.command()
def create(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this one.")] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Create the volumes of the stack that are missing, with their driver, options and labels."""
    from cosmos_coherence.cli import volume_change as verbs

    _finish(verbs.create(name, dry_run=dry_run, yes=yes, as_json=as_json))


@volume.command()
def clone(
    name: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new volume.")],
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make a new volume with the options and, as of one instant, the content of another one."""
    from cosmos_coherence.cli import volume_change as verbs

    _finish(verbs.clone(name, new, dry_run=dry_run, yes=yes, as_json=as_json))


@volume.command()
def copy(
    name: Name,
    to: Annotated[str, typer.Argument(metavar="TO-VOLUME", help="What it holds is replaced.")],
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Replace what a volume holds by the content of another one, as of one instant."""
    from cosmos_coherence.cli import volume_change as verbs

    _finish(verbs.copy(name, to, dry_run=dry_run, yes=yes, as_json=as_json))


@volume.command("fix-owner")
def fix_owner(
    name: Name,
    service: Annotated[
        str, typer.Option("--service", help="Whose user gets what the backup does not know, when several use it.")
    ] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Give every name in a volume the owner and mode that the last backup and the image know."""
    from cosmos_coherence.cli import volume_change as verbs

    _finish(verbs.fix_owner(name, service=service, dry_run=dry_run, yes=yes, as_json=as_json))


@volume.command()
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="All of them or none.")],
    without_backup: WithoutBackup = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove volumes that nobody uses and that a complete backup holds as they are now."""
    from cosmos_coherence.cli import volume_change as verbs

    _finish(verbs.remove(tuple(names), without_backup=without_backup, dry_run=dry_run, yes=yes, as_json=as_json))


@volume.command()
def prune(
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Volumes without a name, too.")] = False,
    without_backup: WithoutBackup = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove the volumes of the stack that nobody uses or will use, as far as a complete backup holds them."""
    from cosmos_coherence.cli import volume_change as verbs

    _finish(verbs.prune(anonymous=anonymous, without_backup=without_backup, dry_run=dry_run, yes=yes, as_json=as_json))


@volume.command()
def clean(name: Name, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False) -> None:
    """Empty a volume that is marked as a cache."""
    from cosmos_coherence.cli import volume_change as verbs

    _finish(verbs.clean(name, dry_run=dry_run, yes=yes, as_json=as_json))


def _finish(status: int) -> None:
    raise typer.Exit(status)
