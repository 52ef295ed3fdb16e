"""The door to the history's database: SQLite beside the program, PostgreSQL in the stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cosmos_coherence import errors
from cosmos_coherence.settings import ServeSettings

_MIGRATION_LOCK = 0x636F736D  # any number that nobody else uses in this database
_CONNECT_S, _STATEMENT_MS = 2, 5000


def connect(settings: ServeSettings, state: Path | None = None) -> Engine:
    """The history's database: the one the settings name, else ``history.sqlite`` in the ``state`` directory.

    Nothing is opened yet, and nothing stays open between two uses: an idle connection would be in the way of a restore
    that replaces this very database. ``ConfigurationError`` when neither is given, or the password cannot be read.
    """
    if not settings.database_url:
        if state is None:
            raise errors.ConfigurationError(
                "no database for the history is named", remedy="Set COSMOS_DATABASE_URL, as compose.yaml does."
            )
        return create_engine(URL.create("sqlite", database=str(state / "history.sqlite")), poolclass=NullPool)
    try:
        address = make_url(settings.database_url)
        if settings.database_password_file is not None:
            address = address.set(password=settings.database_password_file.read_text("utf-8").strip())
    except (ArgumentError, OSError, UnicodeDecodeError) as error:
        raise errors.ConfigurationError(f"the history's database cannot be addressed: {error}") from error
    return create_engine(address, connect_args=_options(address), poolclass=NullPool)


def migrate(engine: Engine) -> None:
    """Bring the tables to this version; harmless when they are. ``ServiceDown`` when the database does not answer,
    ``Unsupported`` when a newer version of this program has written it.
    """
    config = Config()
    config.set_main_option("script_location", "cosmos_coherence.history:migrations")
    with opened(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise errors.Unsupported(
                "a newer version of this program has written the history", remedy="Use that version or a newer one."
            ) from error


@contextmanager
def opened(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end. ``ServiceDown`` for whatever the database answers instead of doing it."""
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise errors.ServiceDown("the history's database does not answer or refuses us") from error


def _options(address: URL) -> dict[str, str | int]:
    if address.get_backend_name() != "postgresql":
        return {}
    return {
        "connect_timeout": _CONNECT_S,
        "application_name": "cosmos-history",
        "options": f"-c statement_timeout={_STATEMENT_MS}",
    }
