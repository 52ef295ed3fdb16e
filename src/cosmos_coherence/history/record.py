"""One finished run, read from the report that it left behind."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.model import Gap, PartFile, SourceKind

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^\x00]+$")]
"""Text that fits a column; anything else in a report is refused before it reaches the database."""
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class PartSizes(msgspec.Struct, frozen=True):
    """What one part of a backup takes."""

    name: str
    kind: SourceKind
    files: tuple[PartFile, ...] = ()

    @property
    def size(self) -> int:
        """Bytes inside the archive."""
        return sum(file.size for file in self.files)


class FailureText(msgspec.Struct, frozen=True):
    """Why a run failed."""

    code: str
    message: str
    remedy: str = ""


class RunRecord(msgspec.Struct, frozen=True):
    """A run as the history keeps it: the fields of its report that are worth showing, under the same names."""

    project: Name
    run: Name
    verb: Name
    status: Name
    exit_status: int
    started_at: str
    ended_at: str
    seconds: float = 0.0
    backup: str = ""
    size: Bytes = 0
    pause_ms: float | None = None
    parts: tuple[PartSizes, ...] = ()
    missing: tuple[Gap, ...] = ()
    failure: FailureText | None = None

    @property
    def name(self) -> str:
        """What tells this run from others of its project; also the stem of its file in the spool."""
        return f"{self.run}-{self.verb}"

    @property
    def ended(self) -> datetime:
        """When it ended, in UTC."""
        return moment(self.ended_at)


_DECODER = msgspec.json.Decoder(RunRecord)


def read(report: bytes) -> RunRecord:
    """A run from its report in JSON; fields it does not know are passed over. ``Damaged`` when it is no report."""
    try:
        record = _DECODER.decode(report)
        moment(record.started_at), moment(record.ended_at)
    except (msgspec.MsgspecError, ValueError) as error:
        raise errors.Damaged(f"this is not the report of a run: {error}") from error
    return record


def moment(text: str) -> datetime:
    """RFC 3339 text as a moment in UTC; ``ValueError`` when it is none or names no offset."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} names no time zone")
    return found.astimezone(UTC)
