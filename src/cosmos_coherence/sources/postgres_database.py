"""What has to be known of a database, beside its content, to make it again on another server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.sources.postgres_session import Session, identifier, literal

MARK: Final = "cosmos.restore"
"""A setting that says which run staged a database or a role; it follows the object through every rename."""

_PRIVILEGES: Final = frozenset({"CREATE", "CONNECT", "TEMPORARY"})
_LISTS: Final = frozenset({"search_path", "temp_tablespaces", "local_preload_libraries", "session_preload_libraries"})
"""Settings whose value is a list of quoted names, kept as one text."""

_DESCRIBE: Final = f"""
SELECT json_build_object(
    'encoding', pg_encoding_to_char(d.encoding), 'collate', d.datcollate, 'ctype', d.datctype,
    'provider', coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
    'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', ''),
    'rules', coalesce(to_jsonb(d) ->> 'daticurules', ''),
    'owner', pg_get_userbyid(d.datdba), 'limit', d.datconnlimit,
    'comment', coalesce(shobj_description(d.oid, 'pg_database'), ''),
    'acl', (SELECT json_agg(json_build_object(
                'grantee', CASE WHEN a.grantee = 0 THEN '' ELSE pg_get_userbyid(a.grantee) END,
                'privilege', a.privilege_type, 'grantable', a.is_grantable)) FROM aclexplode(d.datacl) a),
    'settings', coalesce((SELECT json_agg(json_build_object(
                'role', CASE WHEN s.setrole = 0 THEN '' ELSE pg_get_userbyid(s.setrole) END,
                'name', split_part(c, '=', 1), 'value', substr(c, strpos(c, '=') + 1)))
                FROM pg_db_role_setting s, unnest(s.setconfig) c
                WHERE s.setdatabase = d.oid AND split_part(c, '=', 1) <> {literal(MARK)}), '[]'))
FROM pg_database d WHERE d.datname = current_database();
"""


class Grant(msgspec.Struct, frozen=True):
    """One privilege on a database; no grantee means everybody."""

    grantee: str
    privilege: str
    grantable: bool


class Configured(msgspec.Struct, frozen=True):
    """``ALTER DATABASE ... SET``, or ``ALTER ROLE ... IN DATABASE ... SET`` when it is for one role."""

    role: str
    name: str
    value: str


class DatabaseRecord(msgspec.Struct, frozen=True):
    """A database without its content."""

    encoding: str
    collate: str
    ctype: str
    provider: str
    """``c`` libc, ``i`` ICU, ``b`` built in."""
    locale: str
    rules: str
    owner: str
    limit: int
    """How many may be connected; -1 without limit."""
    comment: str
    acl: tuple[Grant, ...] | None
    """None: what every database grants."""
    settings: tuple[Configured, ...]
    stream: str = ""
    """The logical name of its dump in the backup."""


def describe(session: Session) -> DatabaseRecord:
    """The database of the session."""
    return msgspec.convert(session.json(_DESCRIBE), DatabaseRecord)


def encode(record: DatabaseRecord) -> str:
    """As a text for the manifest."""
    return msgspec.json.encode(record).decode()


def decode(text: str) -> DatabaseRecord:
    """Back from the manifest. ``Damaged`` when it is no such text."""
    try:
        return msgspec.json.decode(text, type=DatabaseRecord)
    except msgspec.MsgspecError as error:
        raise errors.Damaged(f"the manifest does not describe a database: {error}") from error


def creations(name: str, record: DatabaseRecord, *, server: int) -> Iterator[str]:
    """Statements that make it, empty, on a server of that major version: the first one exactly as it was, the others
    for a server that lacks its locale."""
    create = (
        f"CREATE DATABASE {identifier(name)} TEMPLATE template0 OWNER {identifier(record.owner)}"
        f" ENCODING {literal(record.encoding)}"
    )
    exactly = f" LC_COLLATE {literal(record.collate)} LC_CTYPE {literal(record.ctype)}"
    if server >= 15:
        exactly += {
            "i": f" LOCALE_PROVIDER icu ICU_LOCALE {literal(record.locale)}",
            "b": f" LOCALE_PROVIDER builtin BUILTIN_LOCALE {literal(record.locale)}",
        }.get(record.provider, " LOCALE_PROVIDER libc")
    if record.rules:
        exactly += f" ICU_RULES {literal(record.rules)}"
    yield f"{create}{exactly};"
    yield f"{create};"
    yield f"{create} LC_COLLATE 'C' LC_CTYPE 'C'{' LOCALE_PROVIDER libc' if server >= 15 else ''};"


def dressings(name: str, record: DatabaseRecord) -> Iterator[str]:
    """Statements that give the filled database its rights, settings, limit and comment. ``Damaged`` for others than
    there are."""
    database = f"DATABASE {identifier(name)}"
    if record.acl is not None:
        yield f"REVOKE ALL ON {database} FROM PUBLIC, {identifier(record.owner)};"
        for grant in record.acl:
            if grant.privilege not in _PRIVILEGES:
                raise errors.Damaged(f"the manifest names a privilege {grant.privilege!r}, which databases do not have")
            whom = identifier(grant.grantee) if grant.grantee else "PUBLIC"
            option = " WITH GRANT OPTION" if grant.grantable else ""
            yield f"GRANT {grant.privilege} ON {database} TO {whom}{option};"
    for setting in record.settings:
        whose = f"ROLE {identifier(setting.role)} IN {database}" if setting.role else database
        yield f"ALTER {whose} SET {identifier(setting.name)} TO {_value(setting)};"
    if record.limit != -1:
        yield f"ALTER {database} CONNECTION LIMIT {record.limit};"
    if record.comment:
        yield f"COMMENT ON {database} IS {literal(record.comment)};"


def _value(setting: Configured) -> str:
    if setting.name not in _LISTS:
        return literal(setting.value)
    names = re.findall(r'"((?:[^"]|"")*)"|([^,"\s]+)', setting.value)
    return ", ".join(literal(quoted.replace('""', '"') or plain) for quoted, plain in names) or "''"
