"""The verbs of the repository: ``init``, ``key``, ``unlock``, ``files``, ``diff``, ``dump``, ``export``, ``import``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import context, render
from cosmos_coherence.flow import contents, store
from cosmos_coherence.storage import local

if TYPE_CHECKING:
    from cosmos_coherence.repository.repository import Repository


def init(*, url: str, kit: Path | None, as_json: bool) -> int:
    """Make the repository; the exit status."""
    from cosmos_coherence.flow import initialise

    made = initialise.initialise(context.settings(), url=url, kit=kit)
    if as_json:
        render.as_json(made)
        return 0
    if made.configuration:
        typer.echo(f"{made.configuration} names the repository")
    typer.echo(f"{'made' if made.created else 'there already:'} repository {made.repository[:8]} in {made.location}")
    typer.echo(f"password: {made.password_in}")
    if made.kit:
        typer.echo(f"recovery kit: {made.kit}")
        typer.echo("  Print it or keep it in a password safe, away from this machine, and delete the file.")
    typer.echo("A repository whose password is lost is lost: nobody can make a new one.")
    return 0


def files(name: str, path: str, *, as_json: bool) -> int:
    """List what a backup holds; the exit status."""
    settings = context.settings()
    with context.opened(name, settings) as reader:
        found = list(contents.items(reader, path))
    if as_json:
        render.as_json([{"path": _shown(i.path), "kind": i.kind, "size": i.size} for i in found])
        return 0
    for item in found:
        typer.echo(f"{item.kind:9} {item.size:>14,}  {_shown(item.path)}")
    return 0


def diff(before: str, after: str, *, as_json: bool) -> int:
    """Compare two backups; the exit status."""
    settings = context.settings()
    with context.opened(before, settings) as old, context.opened(after, settings) as new:
        found = list(contents.differences(old, new))
    if as_json:
        render.as_json([{**_plain(d), "path": _shown(d.path)} for d in found])
        return 0
    marks = {"added": "+", "removed": "-", "changed": "M"}
    for each in found:
        typer.echo(f"{marks[each.change]} {_shown(each.path)}  {each.before:,} -> {each.after:,}")
    typer.echo(f"{len(found)} names differ")
    return 0


def dump(name: str, path: str, *, table: str, to: Path | None, as_json: bool) -> int:
    """Write one file of a backup, or one table, to standard output or a new file; the exit status."""
    settings = context.settings()
    if to is None and as_json:
        raise errors.UsageError("standard output cannot be both the file and JSON", remedy="Name a file with --to.")
    if to is None and sys.stdout.isatty():
        raise errors.Refused(
            "the terminal is no place for the bytes of a file", remedy="Redirect it, or name --to FILE."
        )
    with context.opened(name, settings) as reader, _written(to) as out:
        size = contents.dump_table(reader, path, table, out) if table else contents.dump(reader, path, out)
        identity = reader.manifest.id
    if as_json:
        render.as_json({"status": "done", "backup": identity, "path": path, "to": str(to), "size": size})
    return 0


@contextmanager
def _written(to: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a new private file that is whole or not there. ``Refused`` when it is there already."""
    if to is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if to.exists():
        raise errors.Refused(f"{to} is there already", remedy="Choose another name.")
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        with local.translated(f"writing {to}"), os.fdopen(local.create(temporary), "wb") as out:
            yield out
        local.publish(temporary, to)
    finally:
        temporary.unlink(missing_ok=True)


def extract(name: str, folder: Path, *, only: tuple[str, ...], as_json: bool) -> int:
    """Write a backup into a folder; the exit status."""
    settings = context.settings()
    with context.opened(name, settings) as reader:
        written, identity = contents.extract(reader, folder, only), reader.manifest.id
    if as_json:
        render.as_json({"status": "done", "backup": identity, "to": str(folder), "written": written})
    else:
        typer.echo(f"{identity}: {len(written)} names written to {folder}; nothing of the stack was touched")
    return 0


def export(name: str, *, to: Path | None, as_json: bool) -> int:
    """Make an archive of a backup in the repository; the exit status."""
    from cosmos_coherence.flow import transfer

    settings = context.settings()
    directory = to.resolve() if to else context.backups(settings)
    with store.open_backup(settings, name, project=context.project(settings)) as reader:
        path = transfer.export(reader, directory, workers=settings.backup.workers)
        identity = reader.manifest.id
    if as_json:
        render.as_json({"status": "done", "backup": identity, "path": str(path)})
    else:
        typer.echo(f"exported {identity} to {path}")
    return 0


def import_(name: str, *, as_json: bool) -> int:
    """Bring an archive into the repository; the exit status."""
    from cosmos_coherence.archive.reader import ArchiveReader
    from cosmos_coherence.cli import healing
    from cosmos_coherence.flow import backup as backing
    from cosmos_coherence.flow import known, transfer
    from cosmos_coherence.flow.recover import RESTORE_SPOOL

    settings = context.settings()
    if not store.configured(settings):
        store.backend(settings)  # says so
    file = context.archive(name if name.endswith(".tar.gz") else f"{name}.tar.gz", settings)
    assert file is not None
    backups = context.backups(settings)
    with local.spool(backups, RESTORE_SPOOL) as spool, ArchiveReader.open_archive(file, spool / "archive") as reader:
        identity, project = reader.manifest.id, reader.manifest.project
        held = {each.id for each in store.kept(store.open_repository(settings), project)}
        if identity not in held:
            healing.first(settings)
            state, own, said = context.state(settings), context.project(settings) or project, ""

            def published(repository: Repository, snapshot: str) -> None:
                nonlocal said
                said = known.add(state, repository, own, known.Backup(identity, snapshot)) if state else ""

            writer = store.repository_writer(
                settings, identity, project, spool / backing.new_run(), published=published
            )
            try:
                writer.pack(transfer.copied(reader, writer))
                writer.verify()
                writer.publish()
            finally:
                writer.abort()
            if said:
                typer.echo(said, err=True)
    if as_json:
        render.as_json({"status": "done", "backup": identity, "imported": identity not in held})
    else:
        typer.echo(f"{'was there already' if identity in held else 'imported'}: {identity}")
    return 0


def copy(url: str, names: tuple[str, ...], *, password_file: Path, as_json: bool) -> int:
    """Copy backups into a second repository; the exit status, which is that of damage when one had to stay behind."""
    from cosmos_coherence.flow import upkeep

    settings = context.settings()
    target = upkeep.second(settings, url, password_file)
    copied = upkeep.copy(settings, target, project=context.project(settings), names=names)
    damaged = (*copied.unreadable, *copied.damaged.values())
    if as_json:
        render.as_json(
            {"status": "failed" if damaged else "done", "copied": len(copied.snapshots),
             "there_already": len(copied.skipped), "damaged": damaged}
        )  # fmt: skip
    else:
        for sentence in damaged:
            typer.echo(f"not copied: {sentence}", err=True)
        typer.echo(
            f"{len(copied.snapshots)} backups copied, {len(copied.skipped)} were there already"
            + (f", {len(damaged)} DAMAGED" if damaged else "")
        )
    return errors.Damaged.exit_status if damaged else 0


def unlock(*, every: bool, as_json: bool) -> int:
    """Remove stale locks, or every lock; the exit status."""
    from cosmos_coherence.repository import locks

    removed = locks.unlock(store.open_repository(context.settings()), every=every)
    if as_json:
        render.as_json({"status": "done", "removed": removed})
    else:
        typer.echo(f"{removed} locks removed")
    return 0


def key(what: str, *, key_id: str, new_password_file: Path | None, as_json: bool) -> int:
    """Look at the keys, add, remove or change one; the exit status."""
    from cosmos_coherence.repository import keys

    settings = context.settings()
    repository = store.open_repository(settings)
    said = ""
    match what:
        case "list":
            pass
        case "add":
            said = f"added key {keys.create(repository.backend, _new_password(new_password_file), repository.key)[:8]}"
        case "change":
            opened = keys.change_password(repository.backend, repository.opened, _new_password(new_password_file))
            said = f"the key in use is now {opened.id[:8]}; put the new password where the old one is kept"
        case "remove":
            names = [info.id for info in keys.listing(repository.backend) if key_id and info.id.startswith(key_id)]
            if len(names) != 1:
                raise errors.NotFound(
                    f"{len(names)} keys begin with {key_id!r}", remedy="`cosmos key list` shows them."
                )
            keys.remove(repository.backend, names[0], in_use=repository.opened.id)
            said = f"removed key {names[0][:8]}; after a leak only a new repository helps"
        case _:
            raise errors.UsageError(f"{what} is no verb of key", remedy="One of: list, add, change, remove.")
    found = keys.listing(repository.backend)
    if as_json:
        render.as_json({"status": "done", "keys": found})
        return 0
    if said:
        typer.echo(said)
    rows = [(i.id[:8], i.username, i.hostname, i.created_at, "in use" if i.id == repository.opened.id else "")
            for i in found]  # fmt: skip
    render.table(("KEY", "USER", "HOST", "MADE", ""), rows)
    return 0


def _new_password(file: Path | None) -> str:
    """From a file, or typed twice; never an empty one."""
    if file is not None:
        with local.translated(f"reading {file}"):
            password = file.read_text("utf-8", "surrogateescape").split("\n", 1)[0].rstrip("\r")
        if not password:
            raise errors.Refused(f"{file} begins with an empty line", remedy="The password is its first line.")
        return password
    if not sys.stdin.isatty():
        raise errors.Refused("there is nobody to type the new password", remedy="Name a file: --new-password-file.")
    return str(typer.prompt("New password", hide_input=True, confirmation_prompt=True))


def _shown(path: bytes) -> str:
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


def _plain(difference: contents.Difference) -> dict[str, object]:
    return {"change": difference.change, "before": difference.before, "after": difference.after}
