"""The catalogue of errors.

One root, one class for each condition a user can meet. A class fixes the code, the exit status, the HTTP status,
whether trying again can help, and the remedy; an instance adds the sentence. Libraries' exceptions are turned into
these at the edge that calls the library; each front prints them in one place.

Exit status: 1 failed, nothing published; 2 wrong usage or configuration; 3 published but incomplete; 4 not found;
5 locked by another run; 6 wrong key or damaged data; 7 refused for safety; 130 interrupted.
"""

from __future__ import annotations

from typing import ClassVar


class CosmosError(Exception):
    """Root of everything we raise on purpose. ``str()`` is the sentence; ``remedy`` is what to do about it."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    default_remedy: ClassVar[str] = "Run the command again; if it fails the same way, run `cosmos doctor`."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = self.default_remedy if remedy is None else remedy

    def add(self, clause: str) -> None:
        """Say one thing more, after a semicolon: what came of it."""
        self.message = f"{self.message}; {clause}"
        self.args = (self.message,)


class UsageError(CosmosError):
    """The call itself is wrong."""

    code = "usage"
    exit_status = 2
    http_status = 400
    default_remedy = "See `cosmos --help`."


class ConfigurationError(CosmosError):
    """Settings, labels or Compose files contradict themselves or cannot be read."""

    code = "configuration"
    exit_status = 2
    http_status = 400
    default_remedy = "Mend the setting named above."


class NotFound(CosmosError):
    """A stack, backup, part, volume or file that does not exist."""

    code = "not-found"
    exit_status = 4
    http_status = 404
    default_remedy = "`cosmos list` shows the backups, `cosmos status` the stack and its parts."


class Locked(CosmosError):
    """Another run of this stack is under way."""

    code = "locked"
    exit_status = 5
    http_status = 409
    retryable = True
    default_remedy = "Wait until it has ended."


class Damaged(CosmosError):
    """Bytes that do not match their checksum, are cut short, or are not what their name says."""

    code = "damaged"
    exit_status = 6
    http_status = 422
    default_remedy = "Use another backup; `cosmos list` shows them. Nothing live was touched."


class Hostile(Damaged):
    """An archive that tries to write outside its target or to smuggle something in."""

    code = "hostile"
    default_remedy = "Do not use this file. Nothing live was touched."


class Refused(CosmosError):
    """Refused for safety: it would overwrite, there is no room, or nobody answered the question."""

    code = "refused"
    exit_status = 7
    http_status = 409
    default_remedy = "Look at the plan with --dry-run; --yes answers the question."


class NoRoom(Refused):
    """The disk is full, or would be."""

    code = "no-room"
    http_status = 507
    default_remedy = "Free space or choose another folder, then run the same command again."


class EngineUnavailable(CosmosError):
    """The Docker engine does not answer."""

    code = "engine-unavailable"
    http_status = 503
    retryable = True
    default_remedy = "Start Docker, or set DOCKER_HOST to the engine that runs the stack."


class EngineForbidden(CosmosError):
    """The Docker engine is there, but this user may not talk to it."""

    code = "engine-forbidden"
    http_status = 403
    default_remedy = "Run as root or as a member of the group `docker`."


class BackendUnavailable(CosmosError):
    """The place where a repository lies does not answer, or broke the connection."""

    code = "backend-unavailable"
    http_status = 503
    retryable = True
    default_remedy = "Look whether the server is up and the network goes there, then run the same command again."


class WrongPassword(CosmosError):
    """No key of the repository opens with this password."""

    code = "wrong-password"
    exit_status = 6
    http_status = 403
    default_remedy = "Give the password of the recovery kit. A repository whose password is lost is lost."


class ServiceDown(CosmosError):
    """A service that has to answer does not."""

    code = "service-down"
    http_status = 503
    retryable = True
    default_remedy = "Start the service (`docker compose up -d SERVICE`) and look at its logs."

    def __init__(self, message: str, *, ended: bool = False, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.ended = ended
        """It was started and has ended by itself."""


class CommandFailed(CosmosError):
    """A command in a service or on this machine ended with a status other than 0, or was cut off."""

    code = "command-failed"

    def __init__(self, message: str, *, status: int | None = None, stderr: str = "", remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.stderr = stderr


class AccessDenied(CosmosError):
    """A server refused the user or the password."""

    code = "access-denied"
    exit_status = 6
    http_status = 403
    default_remedy = "Check the user and the password that the service was started with."


class CutFailed(CosmosError):
    """No instant could be taken within the budget."""

    code = "cut-failed"
    retryable = True
    default_remedy = "Raise `cut.max_pause`, or run the backup when the stack writes less."


class CaptureFailed(CosmosError):
    """A source could not be read to its end."""

    code = "capture-failed"


class RestoreFailed(CosmosError):
    """A restore did not end well; the sentence says what state the stack is in."""

    code = "restore-failed"


class NotEqual(RestoreFailed):
    """What was restored does not match the fingerprint."""

    code = "not-equal"


class Unsupported(CosmosError):
    """Something this version does not do, said before anything is touched."""

    code = "unsupported"
    exit_status = 2
    http_status = 400
    default_remedy = "`docs/guide.md` says what is there and what is not."


class Interrupted(CosmosError):
    """Stopped by the user or by a signal."""

    code = "interrupted"
    exit_status = 130
    http_status = 499
    default_remedy = "Run the same command again; it converges."


CATALOGUE: tuple[type[CosmosError], ...] = (
    CosmosError, UsageError, ConfigurationError, NotFound, Locked, Damaged, Hostile, Refused, NoRoom,
    EngineUnavailable, EngineForbidden, BackendUnavailable, WrongPassword, ServiceDown, CommandFailed, AccessDenied,
    CutFailed, CaptureFailed, RestoreFailed, NotEqual, Unsupported, Interrupted,
)  # fmt: skip
"""Every class above, for the manual and for the test that no code is used twice."""

INCOMPLETE_STATUS = 3
"""Exit status of a run that published a backup marked incomplete; it is a report, not an error."""
