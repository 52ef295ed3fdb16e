"""Where backups are kept: an archive folder, and a repository when one is configured.

The repository's engine is loaded only when there is one: whoever keeps archives does not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cosmos_coherence import errors
from cosmos_coherence import settings as declaration
from cosmos_coherence.drivers import priority, process
from cosmos_coherence.model import Manifest
from cosmos_coherence.parts import BackupReader, BackupWriter
from cosmos_coherence.settings import RepositorySettings, Settings
from cosmos_coherence.storage import local

if TYPE_CHECKING:
    from cosmos_coherence.repository.repository import Repository
    from cosmos_coherence.repository.snapshots import Listed
    from cosmos_coherence.storage.backend import Backend

_LONGEST = 4096
_SHORTEST = 4
DEFAULT_PASSWORD_FILE = Path("secrets/repository-password")


class Kept(msgspec.Struct, frozen=True):
    """One backup in the repository."""

    id: str
    project: str
    listed: Listed

    @property
    def snapshot(self) -> str:
        """Id of its snapshot, 64 hex digits."""
        return self.listed.id

    @property
    def made_s(self) -> float:
        """Its instant, seconds since the epoch."""
        return self.listed.snapshot.time_ns / 1e9

    @property
    def safety(self) -> bool:
        """Made by a restore before it overwrote anything."""
        return "safety" in (self.listed.snapshot.tags or ())

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return "incomplete" not in (self.listed.snapshot.tags or ())


def configured(settings: Settings) -> bool:
    """Whether backups go to a repository."""
    return bool(settings.repository.url)


def backend(settings: Settings) -> Backend:
    """The place of the configured repository. Raises ``ConfigurationError`` and ``NotFound`` for a missing secret."""
    from cosmos_coherence.storage.opened import Access, open_backend

    found, folder = settings.repository, settings.stack.directory
    if not found.url:
        raise errors.ConfigurationError(
            "no repository is configured", remedy="`cosmos init` makes one, or name one as `repository.url`."
        )
    access = Access(
        s3_key_id=found.s3_key_id,
        s3_secret=_first_line(folder, found.s3_secret_file),
        s3_endpoint=found.s3_endpoint,
        s3_region=found.s3_region,
        sftp_key=_below(folder, found.sftp_key),
        sftp_known_hosts=_below(folder, found.sftp_known_hosts),
        sftp_agent=declaration.ssh_agent(),
        rest_user=found.rest_user,
        rest_password=_first_line(folder, found.rest_password_file),
        ca=_below(folder, found.ca),
        upload_limit=found.upload_limit,
        download_limit=found.download_limit,
    )
    return open_backend(located(found.url, folder), access)


def located(url: str, folder: Path) -> str:
    """A path is relative to the project's folder; anything else is as it was written."""
    return str(folder / url) if _is_path(url) else url


def local_folder(settings: Settings) -> tuple[Path, ...]:
    """The folder that the repository lies in, when it lies on this machine."""
    url = settings.repository.url
    return (settings.stack.directory / url,) if url and _is_path(url) else ()


def places(settings: Settings) -> tuple[Path, ...]:
    """What of this machine has to be there for the repository to open: its folder, and the files of secrets."""
    found = settings.repository
    if not found.url:
        return ()
    named = (found.password_file, found.s3_secret_file, found.rest_password_file, found.sftp_key,
             found.sftp_known_hosts, found.ca)  # fmt: skip
    secrets = [settings.stack.directory / path for path in named if path is not None]
    return (*local_folder(settings), *(path for path in secrets if path.is_file()))


def password(settings: Settings) -> str:
    """The repository's password: from the environment, the command, or the file, in that order.

    The command runs in the project's folder. Raises ``NotFound`` when the file is missing, ``ConfigurationError`` when
    what was found is empty, which would be a password that everybody has, and ``CommandFailed``.
    """
    found: RepositorySettings = settings.repository
    if given := declaration.repository_password():
        return given
    if found.password_command:
        said = process.run(list(found.password_command), limit=_LONGEST, cwd=settings.stack.directory)
        password = said.decode("utf-8", "surrogateescape").split("\n", 1)[0].rstrip("\r")
        source = f"what `{found.password_command[0]}` prints"
    else:
        source = str(password_file(settings))
        password = _first_line(settings.stack.directory, password_file(settings))
    if not password:
        raise errors.ConfigurationError(
            f"the password of the repository is empty: {source}", remedy="It is the first line; see `cosmos init`."
        )
    return password


def password_file(settings: Settings) -> Path:
    """Where the password is kept, unless environment or command give it.

    Raises ``ConfigurationError`` for a place that every backup holds: whoever has the backup would have its key.
    """
    folder = settings.stack.directory.resolve()
    file = folder / (settings.repository.password_file or DEFAULT_PASSWORD_FILE)
    if file.is_relative_to(folder / "configs") or (file.parent == folder and file.name.startswith(".env")):
        raise errors.ConfigurationError(
            f"the repository's password lies in {file}, which is backed up", remedy="Keep it below `secrets/`."
        )
    return file


def private_files(settings: Settings) -> tuple[Path, ...]:
    """What no backup may hold, though the stack's own files refer to it: whatever opens the repository."""
    from cosmos_coherence.flow.initialise import KIT

    found = settings.repository
    secrets = (found.s3_secret_file, found.rest_password_file, found.sftp_key, Path(KIT))
    return (password_file(settings), *(path for path in secrets if path is not None))


def open_repository(settings: Settings) -> Repository:
    """Open the configured repository. Raises as ``backend``, ``password`` and ``Repository.open``."""
    from cosmos_coherence.repository.repository import Repository

    return Repository.open(backend(settings), password(settings))


def kept(repository: Repository, project: str | None = None) -> tuple[Kept, ...]:
    """The backups in a repository (of that project) that can be read, oldest first. ``damaged`` names the others."""
    from cosmos_coherence.repository import layout

    found = layout.backups(repository.readable_snapshots()[0], project)
    return tuple(Kept(layout.backup_id(each.snapshot) or "", layout.project_of(each.snapshot), each) for each in found)


def damaged(repository: Repository) -> tuple[str, ...]:
    """A sentence for each snapshot that cannot be read; of whose backup it is, nobody can tell."""
    return tuple(error.message for error in repository.readable_snapshots()[1])


def find(repository: Repository, name: str, project: str | None = None) -> Kept:
    """The backup that a person calls ``latest``, by its id or by the beginning of its snapshot's id.

    Raises ``NotFound``; ``Damaged`` for ``latest`` when a snapshot cannot be read, since that one may be the latest.
    """
    if name == "latest" and (unreadable := damaged(repository)):
        raise errors.Damaged(
            f"which backup is the latest cannot be told: {unreadable[0]}",
            remedy="`cosmos list` shows those that can be read: name one of them.",
        )
    found = [each for each in kept(repository, project) if name != "latest" or not each.safety]
    matching = [
        each
        for each in found
        if name in ("latest", each.id) or (len(name) >= _SHORTEST and each.snapshot.startswith(name.lower()))
    ]
    if not matching:
        raise errors.NotFound(
            f"there is no backup {name} in {repository.location}", remedy="`cosmos list` shows the backups."
        )
    return matching[-1]


@contextmanager
def open_backup(settings: Settings, name: str, *, project: str | None = None) -> Iterator[BackupReader]:
    """A backup of the configured repository. Raises as ``open_repository`` and ``find``; ``Locked`` during a prune."""
    from cosmos_coherence.repository import locks
    from cosmos_coherence.repository.reader import RepositoryReader

    repository = open_repository(settings)
    with locks.acquire(repository, exclusive=False, settle=False) as lock:
        yield RepositoryReader(repository, find(repository, name, project).listed, forking=lock.without_thread)


def manifest_of(repository: Repository, backup: Kept) -> Manifest:
    """What a backup says of itself. Raises ``Damaged``."""
    from cosmos_coherence.repository.reader import RepositoryReader

    return RepositoryReader(repository, backup.listed).manifest


def repository_writer(
    settings: Settings,
    identity: str,
    project: str,
    spool: Path,
    *,
    published: Callable[[Repository, str], None] = lambda repository, snapshot: None,
    cache: Path | None = None,
) -> BackupWriter:
    """A new backup in the configured repository. Raises as ``open_repository`` and ``RepositoryWriter``.

    ``published`` is told the repository and the snapshot's id when the backup is there; it may not raise. ``cache``
    is a private folder for what spares the next backup work.
    """
    from cosmos_coherence.repository.tree_cache import TreeCache
    from cosmos_coherence.repository.writer import RepositoryWriter

    kept_trees = None if cache is None else TreeCache(cache)
    with kept_trees.reading_ahead() if kept_trees is not None else nullcontext():  # deriving a key needs a core only
        repository = open_repository(settings)
    return RepositoryWriter(
        repository, identity, project, spool, workers=settings.backup.workers,
        published=lambda snapshot: published(repository, snapshot), cache=kept_trees,
        prepare=lambda: priority.step_back(settings.backup.nice, settings.backup.idle_io),
    )  # fmt: skip


def new_identity(directory: Path, state: Path) -> str:
    """This second as a backup's name; a later one when the last run of this stack, whose name ``state`` keeps, or
    anything in the folder of the archives bears it, be it a safety backup. The caller holds the run lock."""
    last = state / "last-backup-id"
    while True:
        name = f"{datetime.now(UTC):%Y%m%d_%H%M%S}"
        if not any(directory.glob(f"*{name}*")) and not (last.exists() and last.read_text() == name):
            local.write_atomically(last, name.encode())
            return name
        time.sleep(0.1)


def _is_path(url: str) -> bool:
    scheme, colon, _ = url.partition(":")
    return not colon or "/" in scheme


def _below(folder: Path, path: Path | None) -> Path | None:
    return None if path is None else folder / path


def _first_line(folder: Path, path: Path | None) -> str:
    if path is None:
        return ""
    place = folder / path
    try:
        with place.open("rb") as file:
            return file.read(_LONGEST).decode("utf-8", "surrogateescape").split("\n", 1)[0].rstrip("\r")
    except FileNotFoundError as error:
        raise errors.NotFound(
            f"the secret {place} is missing", remedy="Bring it back from the recovery kit, mode 600."
        ) from error
    except OSError as error:
        raise errors.Refused(f"the secret {place} cannot be read: {error.strerror}") from error
