"""A new repository: its password first, then a trial of its place, then the repository, then a page to keep."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence import settings as declaration
from cosmos_coherence.flow import store
from cosmos_coherence.settings import Settings
from cosmos_coherence.storage import local

DEFAULT_URL = "backups/repository"
KIT = "recovery-kit.txt"


class Initialised(msgspec.Struct, frozen=True):
    """What ``initialise`` did."""

    location: str
    repository: str
    """The repository's own id."""
    created: bool
    """False when it was there already, and opens with the password."""
    password_in: str
    """Where the password is kept."""
    kit: Path | None
    """The recovery kit; None when it was not wanted again."""
    configuration: Path | None = None
    """The settings file that was given a ``[repository]``."""


def initialise(settings: Settings, *, url: str = "", kit: Path | None = None) -> Initialised:
    """Make the repository of the settings, or of ``url``, which the settings file then names. Once more is harmless.

    Raises ``Refused`` when the place does not keep what a repository needs or the kit's file is there,
    ``WrongPassword`` when there is a repository that another password opens, and the backend's errors.
    """
    from cosmos_coherence.repository.repository import Repository
    from cosmos_coherence.storage.probe import probe

    folder = settings.stack.directory
    configuration = None
    if not settings.repository.url or (url and url != settings.repository.url):
        configuration = _configured(folder, url or DEFAULT_URL)
        settings = _with_url(settings, url or DEFAULT_URL)
    generated, password, kept = _password(settings)
    backend = store.backend(settings)
    created = not any(True for _ in backend.list("config"))
    if created:
        place = kit or folder / KIT
        if place.exists():
            raise errors.Refused(f"{place} is there already", remedy="Put it away, or name another file with --kit.")
        backend.create()
        probe(backend)
        repository = Repository.init(backend, password, generated=generated)
        text = recovery_kit(repository.location, repository.config.id, password, settings)
        local.write_atomically(place, text.encode("utf-8", "surrogateescape"))
        return Initialised(repository.location, repository.config.id, True, kept, place, configuration)
    repository = Repository.open(backend, password)
    if kit is not None:
        text = recovery_kit(repository.location, repository.config.id, password, settings)
        local.write_atomically(kit, text.encode("utf-8", "surrogateescape"))
    return Initialised(repository.location, repository.config.id, False, kept, kit, configuration)


def recovery_kit(location: str, repository: str, password: str, settings: Settings) -> str:
    """The page that brings everything back when this machine is gone: where, which password, and what to type."""
    url = store.located(settings.repository.url, settings.stack.directory)
    restic = url if not url.startswith("s3://") else location
    return f"""RECOVERY KIT of a Cosmos Coherence repository, made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC

Print this page or keep it in a password safe, away from the machine that is backed up, and delete the file.
Whoever has it can read every backup. Without the password nobody can, and no one can make a new one: then the
repository is lost.

  repository   {location}
  id           {repository}
  password     {password}

With cosmos, on any machine with Docker, in an empty folder:

  mkdir -m 700 secrets
  cat > secrets/repository-password     (type the password, Enter, Ctrl-D)
  chmod 600 secrets/repository-password
  printf '[repository]\\nurl = "{url}"\\npassword_file = "secrets/repository-password"\\n' > cosmos.toml
  cosmos list
  cosmos restore latest

With restic alone (0.14 or newer), which is not ours:

  export RESTIC_REPOSITORY='{restic}'
  export RESTIC_PASSWORD_FILE=secrets/repository-password
  restic snapshots
  restic restore latest --target restored

In `restored` lie the databases as SQL (`database.sql`, `databases/`, roles in `globals.sql`: feed them to psql), the
cache as `redis/dump.rdb`, every volume as files below `volumes/`, the Compose files below `configs/`, and
`manifest.json`, which says what was backed up when.
"""


def _password(settings: Settings) -> tuple[bool, str, str]:
    """Whether it was made here, the password, and where it is kept. A made one is on the disk before it is used."""
    from cosmos_coherence.repository import keys

    if declaration.repository_password():
        return False, store.password(settings), "the environment, COSMOS_REPOSITORY_PASSWORD"
    if settings.repository.password_command:
        return False, store.password(settings), f"what `{settings.repository.password_command[0]}` prints"
    file = store.password_file(settings)
    kept = f"{file}, mode 600"
    if file.exists():
        password = store.password(settings)
        return len(password) == len(keys.generate_password()), password, kept
    password = keys.generate_password()
    local.make_private(file.parent)
    local.write_atomically(file, password.encode() + b"\n")
    return True, password, kept


def _configured(folder: Path, url: str) -> Path:
    """Name the repository in the settings file. ``ConfigurationError`` when it names another one."""
    path = folder / "cosmos.toml"
    text = path.read_text("utf-8") if path.exists() else ""
    if "repository" in tomllib.loads(text):
        raise errors.ConfigurationError(
            f"{path} has a [repository] already", remedy="Change its `url` there, then run `cosmos init` again."
        )
    quoted = url.replace("\\", "\\\\").replace('"', '\\"')
    block = f'[repository]\nurl = "{quoted}"\npassword_file = "{store.DEFAULT_PASSWORD_FILE}"\n'
    local.write_atomically(path, f"{text.rstrip()}\n\n{block}".lstrip().encode(), mode=0o644)
    return path


def _with_url(settings: Settings, url: str) -> Settings:
    return structs.replace(settings, repository=structs.replace(settings.repository, url=url))
