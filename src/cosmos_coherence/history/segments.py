"""Measurements on their way into the history: a folder of small files, which needs no database.

Each round of measuring is one file, a segment, whole or not there at all, so that a kill at any moment loses at most
the round under way. Segments that the history has stay in ``done/`` for a while: when its own database is restored it
loses everything newer than the backup, and finds it again there.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.model import Measurement
from cosmos_coherence.storage import local

if TYPE_CHECKING:
    from sqlalchemy import Engine

LIMIT: Final = 64 * 1024 * 1024
KEEP_S: Final = 30 * 86400.0
_SUBJECT, _NAME = 300, 100
_LONGEST: Final = 16 * 1024 * 1024
_BATCH: Final = 200
_BLOCK: Final = 4096
_LATEST: Final = 1e11
_Moment = Annotated[float, msgspec.Meta(ge=0, le=_LATEST)]


class _Row(msgspec.Struct):
    taken: _Moment
    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=_SUBJECT, pattern=r"^[^\x00]+$")]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=_NAME, pattern=r"^[^\x00]+$")]
    value: float


_DECODER = msgspec.json.Decoder(list[_Row])


class Drained(msgspec.Struct, frozen=True):
    """What one round did."""

    added: int = 0
    damaged: tuple[str, ...] = ()
    """Names of files that are no segment; they are kept under the suffix ``.damaged``."""


def append(folder: Path, measurements: Iterable[Measurement], *, limit: int = LIMIT) -> int:
    """Keep these in a segment of their own; how many older segments had to go, because more than ``limit`` bytes wait.

    What is no number is left out, and a name that no column holds is cut to one that it can. Raises as
    ``local.write_atomically``; then nothing is kept.
    """
    rows = [fitting(each) for each in measurements if math.isfinite(each.value) and 0 <= each.taken <= _LATEST]
    if not rows:
        return 0
    local.make_private(folder)
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
    local.write_atomically(folder / name, msgspec.json.encode(rows))
    return _bound(folder, limit)


def fitting(measurement: Measurement) -> Measurement:
    """The same with a subject and a name that can be stored and shown anywhere: no control characters, no half
    characters, no more than 300 and 100 of them. A name that had to be changed keeps apart from others by a checksum.
    """
    subject, name = plain(measurement.subject, _SUBJECT), plain(measurement.name, _NAME)
    if subject == measurement.subject and name == measurement.name:
        return measurement
    return replace(measurement, subject=subject, name=name)


def plain(text: str, longest: int) -> str:
    """One line of at most ``longest`` printable characters; text that was changed ends with ``~`` and a checksum."""
    cleaned = "".join(letter if letter.isprintable() else "?" for letter in text)
    if cleaned == text and 0 < len(text) <= longest:
        return text
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{cleaned[: longest - 9]}~{mark}"


def waiting(folder: Path) -> int:
    """How many segments the history does not have yet."""
    return len(_segments(folder))


def read(folder: Path, since: float = 0.0, *, drained: bool = True) -> Iterator[Measurement]:
    """Everything from ``since`` on that lies here, oldest first: what is known without any database. What the history
    has already is left out unless ``drained``."""
    done = _segments(folder / "done") if drained else []
    for path in sorted([*_segments(folder), *done], key=lambda path: path.name):
        with contextlib.suppress(errors.Damaged, OSError):
            yield from (each for each in _read(path) if each.taken >= since)


def drain(folder: Path, engine: Engine, *, keep_s: float = KEEP_S, limit: int = LIMIT) -> Drained:
    """Add every measurement of the spool that the history lacks; repeating it changes nothing.

    Where the history has lost what it had, those read before are added again, the newest last, so that a kill in
    between is noticed. Segments older than ``keep_s`` seconds leave ``done/``, and so do the oldest beyond ``limit``
    bytes. ``ServiceDown`` when the database does not answer: what it has not taken stays where it is.
    """
    from cosmos_coherence.history import database, measurements

    if not folder.is_dir():
        return Drained()
    database.migrate(engine)
    done = folder / "done"
    done.mkdir(mode=0o700, exist_ok=True)
    before, damaged, added = _segments(done), [], 0
    newest, _ = _read_all(before[-1:])
    again = before if newest and not measurements.holds(engine, newest[-1]) else []
    for batch in _batches([*again, *_segments(folder)]):
        found, bad = _read_all(batch)
        damaged += [path.name for path in bad]
        added += measurements.add(engine, found)
        for path in batch:
            if path.parent != done and path not in bad:
                with contextlib.suppress(FileNotFoundError):  # another round was quicker, or it was dropped
                    path.rename(done / path.name)
    _expire(folder, done, keep_s)
    _bound(done, limit)
    return Drained(added, tuple(damaged))


def _segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _batches(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), _BATCH):
        yield paths[start : start + _BATCH]


def _read_all(paths: Sequence[Path]) -> tuple[list[Measurement], list[Path]]:
    """What the segments hold, and those that are none, which are set aside."""
    found: list[Measurement] = []
    bad: list[Path] = []
    for path in paths:
        try:
            found += _read(path)
        except FileNotFoundError:
            continue
        except errors.Damaged:
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            bad.append(path)
        except OSError:  # a disk that cannot be read now may be read later
            bad.append(path)
    return found, bad


def _read(path: Path) -> list[Measurement]:
    with path.open("rb") as file:
        content = file.read(_LONGEST + 1)
    try:
        if len(content) > _LONGEST:
            raise ValueError("it is too long")
        rows = _DECODER.decode(content)
        found = [Measurement(row.taken, row.subject, row.name, row.value) for row in rows]
        if any(not math.isfinite(each.value) or fitting(each) is not each for each in found):
            raise ValueError("it holds what was never measured")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"{path.name} is no segment of measurements: {error}") from error
    return found


def _bound(folder: Path, limit: int) -> int:
    """Remove the oldest segments until no more than ``limit`` bytes are left; how many went."""
    sizes: list[tuple[Path, int]] = []
    for path in _segments(folder):
        with contextlib.suppress(FileNotFoundError):
            sizes.append((path, max(_BLOCK, path.stat().st_size)))
    excess, dropped = sum(size for _, size in sizes) - limit, 0
    for path, size in sizes[:-1]:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess, dropped = excess - size, dropped + 1
    return dropped


def _expire(folder: Path, done: Path, keep_s: float) -> None:
    old = time.time() - keep_s
    half_written = list(folder.glob(".*.tmp"))
    for path in [*_segments(done), *done.glob("*.damaged"), *folder.glob("*.damaged"), *half_written]:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < (time.time() - 3600 if path.suffix == ".tmp" else old):
                path.unlink()
