"""Where a secret stands in plain sight: told by its name or by what it looks like, and never repeated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

_NAME = re.compile(
    r"(?:PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|SECRET|TOKEN|CREDENTIALS?|REDISCLI_AUTH)$"
    r"|(?:API|ACCESS|SECRET|PRIVATE|ENCRYPTION|SIGNING|AUTH|MASTER)_?KEY$",
    re.IGNORECASE,
)
_NOT_A_NAME = re.compile(r"^(?:PWD|OLDPWD)$")
_LOOKS = (
    ("a password in an address", re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@]*:[^/\s:@$<{]+@", re.IGNORECASE)),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("an access key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a token", re.compile(r"\b(?:gh[pousr]_\w{30,}|github_pat_\w{30,}|xox[abprs]-[\w-]{10,}|[sr]k_live_\w{16,})")),
    ("a token", re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
)
_NO_SECRET = re.compile(r"(?:|yes|no|true|false|none|null|on|off|\d{1,2}|/[\w./-]*|\$.*|\{\{.*|<.*)", re.IGNORECASE)
"""Switches, places where a secret is kept, and references to a variable."""
_ASSIGNED = re.compile(r"""(?:^|[\s|;&(])(?:--?)?([A-Za-z_][\w.-]{0,80})=("[^"]*"|'[^']*'|[^\s"';|&]*)""")
_SHOWN = 60


def in_environment(variables: Sequence[str]) -> tuple[str, ...]:
    """The names of the variables (``NAME=value``) that hold a secret, each with what gave it away."""
    return tuple(_pairs("variable", (tuple(v.partition("=")[::2]) for v in variables)))  # type: ignore[misc]


def in_labels(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the labels that hold one."""
    return tuple(_pairs("label", iter(labels.items())))


def in_history(commands: Sequence[str]) -> tuple[str, ...]:
    """The layers of an image whose command shows one: what was only needed to build stays in the history."""
    found = []
    for number, command in enumerate(reversed(commands), 1):
        given = ((name, value.strip("\"'")) for name, value in _ASSIGNED.findall(command))
        hits = [*_pairs("variable", given)]
        hits = hits or [f"what looks like {what}" for what, pattern in _LOOKS if pattern.search(command)]
        found += [f"layer {number}, {hit}" for hit in hits[:3]]
    return tuple(found)


def _pairs(what: str, pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    for name, value in pairs:
        if looks := next((looks for looks, pattern in _LOOKS if pattern.search(value)), ""):
            yield f"{what} {_shown(name)}: what looks like {looks}"
        elif _NAME.search(name) and not _NOT_A_NAME.match(name) and not _NO_SECRET.fullmatch(value):
            yield f"{what} {_shown(name)}"


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:_SHOWN])
