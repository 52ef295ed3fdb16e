"""How long certificates are still good: those that lie in a volume as certbot keeps them, and those that are shown.

Whoever can write to the volume, or answers at the address, says what is read here: no link is followed beyond the one
step that certbot itself makes, and nothing is taken from a certificate but its dates.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from datetime import datetime

import msgspec

from cosmos_coherence.drivers.folders import Folders, open_file
from cosmos_coherence.health.checks import CheckResult, Number, Outcome, gravest
from cosmos_coherence.health.endpoints import Endpoint, connected
from cosmos_coherence.model import Volume

_LIVE = b"live"
_FILES = (b"fullchain.pem", b"cert.pem")
_NAME = re.compile(rb"[A-Za-z0-9_*][A-Za-z0-9._*-]{0,199}")
_MOST = 200
"""Certificates of one volume that are looked at."""
_READ_BYTES = 256 * 1024
_DAY_S = 86400.0


class Patience(msgspec.Struct, frozen=True):
    """Seconds that must be left of a certificate."""

    warn_s: float = 21 * _DAY_S
    fail_s: float = 3 * _DAY_S


def check_volume(volume: Volume, patience: Patience, *, now_s: float) -> CheckResult | None:
    """Every certificate below ``live/`` of the volume. None when it has none, or cannot be reached from here."""
    if volume.path is None or not volume.exists:
        return None
    try:
        with Folders(volume.path) as folders:
            found = [(name, _judged(_stored(folders, name), patience, now_s)) for name in _names(folders)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return _together([(f"{volume.short}/{name.decode('ascii')}", *judged) for name, judged in found]) if found else None


def check_served(endpoint: Endpoint, patience: Patience, *, now_s: float, limit_s: float) -> CheckResult:
    """The certificate that is shown there."""
    try:
        with connected(endpoint, limit_s) as door:
            assert isinstance(door, ssl.SSLSocket)
            shown = door.getpeercert(binary_form=True)
    except (ssl.SSLError, OSError):
        if endpoint.foreign:
            return CheckResult("", "ok", "cannot be asked from here")
        return CheckResult("", "fail", "shows none: no TLS connection comes about")
    return _together([(endpoint.host, *_judged(shown, patience, now_s))])


def _names(folders: Folders) -> list[bytes]:
    with os.scandir(os.open(_LIVE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folders.root)) as entries:
        found = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(name for name in found if _NAME.fullmatch(name))[:_MOST]


def _stored(folders: Folders, name: bytes) -> bytes | None:
    """The file of one certificate; None when there is none, or its link leads elsewhere than certbot's do."""
    for file in _FILES:
        path = b"/".join((_LIVE, name, file))
        try:
            text = os.readlink(file, dir_fd=folders.parent(path)[0])
        except OSError:
            text = b""
        if text:
            stem = re.escape(file.removesuffix(b".pem"))
            if not re.fullmatch(rb"\.\./\.\./archive/" + re.escape(name) + rb"/" + stem + rb"\d{1,9}\.pem", text):
                continue
            path = text.removeprefix(b"../../")
        if opened := open_file(folders, path):
            with os.fdopen(opened[0], "rb") as source:
                return source.read(_READ_BYTES)
    return None


def _judged(data: bytes | None, patience: Patience, now_s: float) -> tuple[Outcome, str, float | None]:
    """Outcome, words, days left."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    if not data:
        return "fail", "has no certificate", None
    try:
        pem = b"-----BEGIN" in data
        certificate = x509.load_pem_x509_certificates(data)[0] if pem else x509.load_der_x509_certificate(data)
        begins, ends = (_seconds(certificate.not_valid_before_utc), _seconds(certificate.not_valid_after_utc))
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.InvalidVersion):
        return "fail", "cannot be read", None
    left = ends - now_s
    days = left / _DAY_S
    if left <= 0:
        return "fail", f"ended {-days:.1f} days ago", days
    if begins > now_s:
        return "fail", "is not valid yet", days
    return (
        "fail" if left < patience.fail_s else "warn" if left < patience.warn_s else "ok",
        f"{days:.1f} days left",
        days,
    )


def _seconds(moment: datetime) -> float:
    return moment.timestamp()


def _together(found: list[tuple[str, Outcome, str, float | None]]) -> CheckResult:
    ordered = sorted(found, key=lambda each: (("fail", "warn", "ok").index(each[1]), each[3] or 0.0))
    if len(ordered) == 1:
        detail = ordered[0][2]
    else:
        detail = ", ".join(f"{name.rpartition('/')[2]} {said}" for name, _, said, _ in ordered[:5])
        detail += f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return CheckResult("", gravest(each[1] for each in found), detail, numbers=tuple(_numbers(found)))


def _numbers(found: list[tuple[str, Outcome, str, float | None]]) -> Iterator[Number]:
    for name, _, _, days in found:
        if days is not None:
            yield Number(f"certificate:{name}", "days_left", round(days, 3))
