"""Reading what ``pg_dumpall --globals-only`` wrote, to take over the roles that a server lacks and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Final

import msgspec

from cosmos_coherence import errors

_NAME: Final = r'(?:"(?:[^"]|"")+"|[a-z_\x80-\U0010ffff][\w$]*)'
_PIECE: Final = re.compile(
    r"""--[^\n]*(?:\n|$)             # comment
      | ^\\[^\n]*(?:\n|$)            # command to psql
      | E'(?:[^'\\]|''|\\.)*'
      | '(?:[^']|'')*'
      | "(?:[^"]|"")*"
      | [^-'"\\;E]+ | [-E]           # anything else
      | ;""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_CREATE: Final = re.compile(rf"CREATE ROLE ({_NAME})$")
_ABOUT: Final = re.compile(rf"(?:ALTER ROLE|COMMENT ON ROLE|SECURITY LABEL .*?ON ROLE) ({_NAME})(?= )", re.DOTALL)
_MEMBER: Final = re.compile(rf"GRANT ({_NAME}) TO ({_NAME})(.*?)(?: GRANTED BY ({_NAME}))?$", re.DOTALL)
_PARAMETER: Final = re.compile(rf"GRANT .* ON PARAMETER .* TO ({_NAME})(?: WITH GRANT OPTION)?$", re.DOTALL)


class Origin(msgspec.Struct, frozen=True):
    """The server that the dump comes from."""

    version: int
    """Its major version."""
    bootstrap: str
    """The role that it was set up with."""


def created(dump: str) -> set[str]:
    """The names of the roles that a dump creates."""
    return {_plain(found[1]) for statement in statements(dump) if (found := _CREATE.match(statement))}


def missing(dump: str, known: Set[str], origin: Origin) -> Iterator[str]:
    """The statements of a dump that make the roles which are not ``known``, with all they are and all they belong to.

    A membership between two known roles is left as it is. Who granted one is only kept where it had a meaning (version
    16 and later) and another than "the server". ``Damaged`` for statements that no such dump holds.
    """
    new = created(dump) - known
    for statement in statements(dump):
        if (found := _CREATE.match(statement) or _ABOUT.match(statement) or _PARAMETER.match(statement)) is not None:
            if _plain(found[1]) in new:
                yield statement + ";"
        elif (found := _MEMBER.match(statement)) is not None:
            group, member, options, grantor = found.groups()
            if {_plain(group), _plain(member)} & new:
                by = ""
                if grantor and origin.version >= 16 and _plain(grantor) != origin.bootstrap:
                    by = f" GRANTED BY {grantor}"
                yield f"GRANT {group} TO {member}{options}{by};"
        elif not statement.startswith(("SET ", "RESET ", "REVOKE ")):  # of the dump's session, or of what is default
            raise errors.Damaged(f"the dump of the roles holds a foreign statement: {statement.split()[0]}")


def statements(dump: str) -> Iterator[str]:
    """The statements of a dump without the semicolon, comments and commands to psql left out.

    ``Damaged`` when one does not end."""
    statement, end = "", 0
    for piece in _PIECE.finditer(dump):
        if piece.start() != end:
            break
        end, text = piece.end(), piece[0]
        if text == ";":
            yield statement.strip()
            statement = ""
        elif not text.startswith(("--", "\\")):
            statement += text
    if end != len(dump) or statement.strip():
        raise errors.Damaged("the dump of the roles is cut short")


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
