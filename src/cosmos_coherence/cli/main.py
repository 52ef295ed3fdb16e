"""The parser: what can be called, and with which options."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated

import typer

import cosmos_coherence
from cosmos_coherence.cli import boundary, context
from cosmos_coherence.cli.schedule import schedule
from cosmos_coherence.cli.volume import volume

_YOUNG = 50_000
"""Objects that may come before the collector looks: of the thousands that a backup makes hardly any is garbage."""

app = typer.Typer(
    name="cosmos",
    help="Back up a whole Docker Compose stack at one instant, prove that it restores, and look after its volumes.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(volume, name="volume")
app.add_typer(schedule, name="schedule")

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
def init(
    url: Annotated[str, typer.Option("--url", help="Where: a path, s3://, sftp://, rest:https://.")] = "",
    kit: Annotated[Path | None, typer.Option("--kit", help="File for the recovery kit.")] = None,
    as_json: Json = False,
) -> None:
    """Make the encrypted repository, its password and a recovery kit."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.init(url=url, kit=kit, as_json=as_json))


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
    to: Annotated[Path | None, typer.Option("--to", help="Write it into this new folder instead.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Restore a backup into the stack; without a name, list the backups."""
    if to is not None:
        from cosmos_coherence.cli import repository

        _finish(repository.extract(backup_name or "latest", to, only=tuple(only or ()), as_json=as_json))
        return
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
    backup_name: Annotated[str, typer.Argument(metavar="[ID|FILE|latest]")] = "latest",
    read_data: Annotated[
        str, typer.Option("--read-data", help="Share of the repository's data to read: 1%, all. Another one every day.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Read an archive to its end and compare every checksum, or look at the whole repository."""
    from cosmos_coherence.cli import look

    _finish(look.check(backup_name, read_data=read_data, as_json=as_json))


@app.command()
def files(
    backup_name: Annotated[str, typer.Argument(metavar="[ID|FILE|latest]")] = "latest",
    path: Annotated[str, typer.Argument(help="Only what lies below this.")] = "",
    as_json: Json = False,
) -> None:
    """List what a backup holds, name by name."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.files(backup_name, path, as_json=as_json))


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="ID|FILE")],
    after: Annotated[str, typer.Argument(metavar="ID|FILE|latest")] = "latest",
    as_json: Json = False,
) -> None:
    """Show which names two backups do not have alike."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.diff(before, after, as_json=as_json))


@app.command()
def dump(
    backup_name: Annotated[str, typer.Argument(metavar="ID|FILE|latest")],
    path: Annotated[str, typer.Argument(help="As `cosmos files` lists it.")],
    table: Annotated[str, typer.Option("--table", help="Only this table of the SQL: public.items.")] = "",
    to: Annotated[Path | None, typer.Option("--to", help="Write it into this new file instead.")] = None,
    as_json: Json = False,
) -> None:
    """Write one file of a backup, or one table, to standard output."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.dump(backup_name, path, table=table, to=to, as_json=as_json))


@app.command()
def export(
    backup_name: Annotated[str, typer.Argument(metavar="[ID|latest]")] = "latest",
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the archive.")] = None,
    as_json: Json = False,
) -> None:
    """Make a portable archive of a backup in the repository."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.export(backup_name, to=to, as_json=as_json))


@app.command("import")
def import_(file: Annotated[str, typer.Argument(metavar="FILE")], as_json: Json = False) -> None:
    """Bring an archive into the repository."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.import_(file, as_json=as_json))


@app.command()
def copy(
    url: Annotated[str, typer.Argument(help="The second repository.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Only these backups.")] = None,
    password_file: Annotated[Path, typer.Option("--password-file", help="The first line is its password.")] = Path(
        "secrets/copy-password"
    ),
    as_json: Json = False,
) -> None:
    """Copy backups to a second repository, which `cosmos init` has made there."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.copy(url, tuple(names or ()), password_file=password_file, as_json=as_json))


@app.command()
def key(
    what: Annotated[str, typer.Argument(metavar="list|add|change|remove")] = "list",
    key_id: Annotated[str, typer.Argument(metavar="[KEY]", help="Which one to remove.")] = "",
    new_password_file: Annotated[Path | None, typer.Option("--new-password-file", help="Its first line.")] = None,
    as_json: Json = False,
) -> None:
    """Look after the keys of the repository."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.key(what, key_id=key_id, new_password_file=new_password_file, as_json=as_json))


@app.command()
def unlock(
    every: Annotated[bool, typer.Option("--all", help="Also locks that somebody may still have.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the locks that dead runs left in the repository."""
    from cosmos_coherence.cli import repository as verbs

    _finish(verbs.unlock(every=every, as_json=as_json))


@app.command()
def health(as_json: Json = False) -> None:
    """Check services, addresses, databases, caches, certificates, volumes, disk and the age of the last backup."""
    from cosmos_coherence.cli import health as verbs

    _finish(verbs.health(as_json=as_json))


@app.command()
def audit(
    profile: Annotated[
        str,
        typer.Option(
            "--profile", metavar="development|production", help="Instead of the one that the Compose files say."
        ),
    ] = "",
    fail_on: Annotated[
        str,
        typer.Option(
            "--fail-on", metavar="error|warning", help="From which severity on a failed rule is exit status 1."
        ),
    ] = "error",
    sarif: Annotated[
        Path | None,
        typer.Option("--sarif", metavar="FILE|-", help="Write a SARIF 2.1.0 log as well; - for standard output."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the stack against the best practices of the guide, each with its remedy."""
    from cosmos_coherence.cli import audit as verbs

    _finish(verbs.audit(profile=profile, fail_on=fail_on, sarif_file=sarif, as_json=as_json))


@app.command()
def alarms(
    what: Annotated[str, typer.Argument(metavar="[test]", help="Send every notifier a message.")] = "",
    as_json: Json = False,
) -> None:
    """Show which alarms are raised and whether those who are to be told can be."""
    from cosmos_coherence.cli import alarms as verbs

    _finish(verbs.alarms(what, as_json=as_json))


@app.command()
def metrics(
    textfile: Annotated[Path | None, typer.Option("--textfile", help="Write them here, for node_exporter.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure first, where no agent does.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Print the newest measurements for Prometheus."""
    from cosmos_coherence.cli import metrics as verbs

    _finish(verbs.metrics(textfile=textfile, measure_now=measure, quiet=quiet, as_json=as_json))


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
    prune: Annotated[bool, typer.Option("--prune", help="Free what no backup in the repository needs.")] = False,
    keep_within: Annotated[str | None, typer.Option("--keep-within", help="Instead of the settings': 30d.")] = None,
    as_json: Json = False,
) -> None:
    """Remove backups older than the settings keep, never the newest good one."""
    from cosmos_coherence.cli import backup as verbs

    _finish(verbs.forget(dry_run=dry_run, prune=prune, keep_within=keep_within, as_json=as_json))


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
    gc.set_threshold(_YOUNG)
    sys.exit(boundary.run(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
