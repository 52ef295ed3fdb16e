"""The parser: what can be called, and with which options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import cosmos_coherence
from cosmos_coherence.cli import boundary, context

app = typer.Typer(
    name="cosmos",
    help="Back up a whole Docker Compose stack at one instant, prove that it restores, and look after its volumes.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask no questions.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this part; may be given several times.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cosmos {cosmos_coherence.__version__}")
        raise typer.Exit


@app.callback()
def options(
    directory: Annotated[Path, typer.Option("--directory", "-C", help="Folder of the project.")] = Path(),
    project: Annotated[str | None, typer.Option("--project", "-p", help="Compose project.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Settings file instead of cosmos.toml.")] = None,
    docker_host: Annotated[str | None, typer.Option("--docker-host", help="Engine to talk to.")] = None,
    compose_file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="Compose file; may be given several times.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the program an error arose.")] = False,
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before the verb."""
    context.given = context.Given(
        directory=directory,
        project=project,
        config=config,
        docker_host=docker_host,
        files=tuple(compose_file or ()),
        debug=debug,
    )


@app.command()
def demo(
    keep: Annotated[Path | None, typer.Option("--keep", help="Leave the stack in this folder to play with.")] = None,
    as_json: Json = False,
) -> None:
    """Embedded stack, writer running, backup, disaster, restore, proof: no Docker needed."""
    from cosmos_coherence.cli import demo as verbs

    _finish(verbs.demo(keep=keep, as_json=as_json))


@app.command()
def backup(
    archive: Annotated[Path | None, typer.Option("--archive", help="Folder for the archive.")] = None,
    only: Only = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A word to find the backup by.")] = None,
    as_json: Json = False,
) -> None:
    """Back up the stack at one instant."""
    from cosmos_coherence.cli import backup as verbs

    _finish(verbs.backup(archive=archive, only=tuple(only or ()), tags=tuple(tag or ()), as_json=as_json))


@app.command()
def restore(
    backup_name: Annotated[str, typer.Argument(metavar="[ID|FILE|latest]", help="What to restore.")] = "",
    only: Only = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Restore a backup into the stack; without a name, list the backups."""
    from cosmos_coherence.cli import restore as verbs

    _finish(verbs.restore(backup_name, only=tuple(only or ()), dry_run=dry_run, yes=yes, as_json=as_json))


@app.command()
def status(as_json: Json = False) -> None:
    """Show the stack, its services, volumes and sources, and what is not covered."""
    from cosmos_coherence.cli import look

    _finish(look.status(as_json=as_json))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the backups."""
    from cosmos_coherence.cli import look

    _finish(look.list_backups(as_json=as_json))


@app.command()
def show(
    backup_name: Annotated[str, typer.Argument(metavar="[ID|FILE|latest]")] = "latest", as_json: Json = False
) -> None:
    """Show what one backup holds."""
    from cosmos_coherence.cli import look

    _finish(look.show(backup_name, as_json=as_json))


@app.command()
def check(
    backup_name: Annotated[str, typer.Argument(metavar="[ID|FILE|latest]")] = "latest", as_json: Json = False
) -> None:
    """Read a backup to its end and compare every checksum."""
    from cosmos_coherence.cli import look

    _finish(look.check(backup_name, as_json=as_json))


@app.command()
def health(as_json: Json = False) -> None:
    """Check services, database, cache, disk and the age of the last backup."""
    from cosmos_coherence.cli import look

    _finish(look.health(as_json=as_json))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check what a run needs: Python, engine, Compose, volumes, folders, room, and what crashes left."""
    from cosmos_coherence.cli import look

    _finish(look.doctor(as_json=as_json))


@app.command()
def recover(as_json: Json = False) -> None:
    """Heal what a crash left behind: held containers, half restores, spools."""
    from cosmos_coherence.cli import backup as verbs

    _finish(verbs.recover(as_json=as_json))


@app.command()
def forget(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove archives older than the settings keep, never the newest good one."""
    from cosmos_coherence.cli import backup as verbs

    _finish(verbs.forget(dry_run=dry_run, as_json=as_json))


@app.command()
def serve(
    what: Annotated[str, typer.Argument(metavar="api|dashboard|agent")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when the code changes.")] = False,
) -> None:
    """Run the API, the dashboard or the agent."""
    from cosmos_coherence.cli import serve as verbs

    _finish(verbs.serve(what, host=host, port=port, reload=reload))


def _finish(exit_status: int) -> None:
    if exit_status:
        raise typer.Exit(exit_status)


def main() -> None:
    """Entry point ``cosmos``."""
    sys.exit(boundary.run(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
