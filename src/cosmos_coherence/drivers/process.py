"""The only module that starts processes: argument lists, never shell text, and nothing that can block on a pipe."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import io
import os
import pwd
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

import msgspec

from cosmos_coherence import errors, interruption, settings

TAIL_BYTES = 8 * 1024
_CHUNK = 64 * 1024
_INHERITED = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SSH_AUTH_SOCK"}
_INHERITED_PREFIXES = ("LC_", "XDG_", "DOCKER_")
NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_PR_SET_PDEATHSIG = 1
_WHEN_TOLD = 'read -r word && exec "$@" </dev/null'
_detached: set[int] = set()


class LocalChild:
    """A command on this machine; keeps the promises of ``drivers.runtime.Child``.

    ``stdin`` is buffered: ``flush`` it before waiting for an answer. Writing to a command that does not read any more
    raises ``CommandFailed`` with what it last said, never a bare ``BrokenPipeError``; it has two seconds to say so.
    """

    def __init__(self, process: subprocess.Popen[bytes], program: str, *, group: bool) -> None:
        self._process, self._program, self._group = process, program, group
        self._stdout = cast(BinaryIO, io.BufferedReader(cast(io.FileIO, process.stdout), _CHUNK))
        self._stdin: BinaryIO | None = None
        if process.stdin is not None:
            self._stdin = cast(BinaryIO, io.BufferedWriter(_Input(process.stdin, self), _CHUNK))
        self._tail = bytearray()
        self._drain = interruption.Thread(target=self._keep_tail, name=f"stderr of {program}", daemon=True)
        self._drain.start()

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group's unless it was started in ours."""
        return self._process.pid

    @property
    def stdin(self) -> BinaryIO:
        """See ``Child``."""
        if self._stdin is None:
            raise AssertionError(f"{self._program} was started without standard input")
        return self._stdin

    @property
    def stdout(self) -> BinaryIO:
        """See ``Child``."""
        return self._stdout

    @property
    def stderr_tail(self) -> str:
        """See ``Child``."""
        return bytes(self._tail).decode("utf-8", "replace")

    def wait(self) -> None:
        """See ``Child``. A command ended by a signal has status 128 + its number. May be called again."""
        try:
            if self._stdin is not None:
                self._stdin.close()
            while not self._stdout.closed and self._stdout.read(_CHUNK):
                pass
            self._process.wait()
        except BaseException:
            self.kill()
            raise
        self._close()
        if self._process.returncode != 0:
            raise self._failure()

    def kill(self) -> None:
        """See ``Child``."""
        self.end()
        self._process.wait()
        self._close()

    def end(self) -> None:
        """Send SIGKILL and return at once, leaving the rest to whoever waits; harmless when it has ended."""
        if self._process.returncode is None:  # not awaited yet, so the id is still its own
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if self._group else os.kill)(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> LocalChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        else:
            self.kill()

    def _keep_tail(self) -> None:
        stderr = cast(IO[bytes], self._process.stderr)
        with stderr:
            while piece := os.read(stderr.fileno(), _CHUNK):
                self._tail += piece
                del self._tail[:-TAIL_BYTES]

    def _close(self) -> None:
        self._drain.join(timeout=1.0)  # something it left in the background may hold the pipe open
        if self._stdin is not None:
            with contextlib.suppress(errors.CommandFailed, OSError):
                self._stdin.close()
        self._stdout.close()

    def _went_away(self) -> errors.CommandFailed:
        """It closed its standard input; wait a moment for the reason that it gives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2.0)
        self.end()
        self._process.wait()
        self._drain.join(timeout=1.0)
        return self._failure()

    def _failure(self) -> errors.CommandFailed:
        code = self._process.returncode
        status = code if code >= 0 else 128 - code
        if code < 0:
            outcome = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        elif code == 0:
            outcome = "ended before it had read all of its input"
        else:
            outcome = f"ended with status {code}"
        return _command_failed(self._program, outcome, status=status, stderr=self.stderr_tail)


class _Input(io.RawIOBase):
    """Write end of a command's standard input that tells why when nobody reads any more."""

    def __init__(self, pipe: IO[bytes], child: LocalChild) -> None:
        self._pipe, self._child = pipe, child

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        try:
            return self._pipe.write(data)
        except BrokenPipeError as error:
            raise self._child._went_away() from error

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._pipe.close()


def start(
    argv: Sequence[str],
    *,
    stdin: bool = False,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    group: str | None = None,
    new_group: bool = True,
) -> LocalChild:
    """Start a command, as another user when root asks for one. ``new_group=False`` keeps it in our process group, to
    be stopped and held with us; ``kill`` then ends only the command itself.

    The command sees ``environment`` and, of ours, no more than what finds programs, home, language and engine. Raises
    ``CommandFailed`` when it cannot be started.
    """
    child: LocalChild | None = None
    try:
        with interruption.uninterrupted():
            process = _popen(
                argv,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                environment=environment,
                cwd=cwd,
                user=user,
                group=group,
                start_new_session=new_group,
            )
            child = LocalChild(process, argv[0], group=new_group)
        return child
    except KeyboardInterrupt:
        if child:  # nobody else knows of it
            child.kill()
        raise


def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    group: str | None = None,
    limit: int = 16 * 1024 * 1024,
    timeout_s: float | None = None,
) -> bytes:
    """What a command without input writes to standard output.

    Raises ``CommandFailed`` when its status is not 0, when it writes more than ``limit`` bytes, or when it has not
    ended within ``timeout_s``.
    """
    child = start(argv, environment=environment, cwd=cwd, user=user, group=group)
    late = threading.Event()

    def end() -> None:
        late.set()
        child.end()

    timer = interruption.Timer(timeout_s, end) if timeout_s is not None else None
    try:
        if timer:
            timer.start()
        with child:
            output = child.stdout.read(limit + 1)
            if len(output) > limit:
                raise _command_failed(argv[0], f"wrote more than {limit} bytes")
        return output
    except errors.CommandFailed as error:
        if late.is_set():
            raise _command_failed(argv[0], f"did not end within {timeout_s:g} s", stderr=error.stderr) from error
        raise
    finally:
        if timer:
            timer.cancel()
            timer.join()


def start_detached(
    argv: Sequence[str],
    *,
    log: Path,
    note: Callable[[int], None] = lambda pid: None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    group: str | None = None,
) -> int:
    """Start a server that outlives us, in a session and process group of its own, and return its process id.

    It reads nothing, and what it says is appended to ``log`` (made with mode 0600). It begins when ``note`` has been
    called with its id; should we die before, it never does: no server runs that nobody knows of. Raises
    ``CommandFailed``, and what ``note`` raises.
    """
    place = str(Path(cwd or "", argv[0])) if "/" in argv[0] else argv[0]
    if shutil.which(place, path=(environment or {}).get("PATH")) is None:
        raise _no_program(argv[0])
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _command_failed(argv[0], f"cannot write its log {log}: {error.strerror}") from error
    try:
        process = _popen(
            ["sh", "-c", _WHEN_TOLD, "sh", *argv],
            stdin=subprocess.PIPE,
            stdout=descriptor,
            stderr=descriptor,
            environment=environment,
            cwd=cwd,
            user=user,
            group=group,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    process.returncode = 0  # not ours to await; ``facts`` reaps it should it end while we live
    _detached.add(process.pid)
    with cast(IO[bytes], process.stdin) as word:
        note(process.pid)
        with contextlib.suppress(BrokenPipeError):  # it was ended already
            word.write(b"go\n")
    return process.pid


class Companion:
    """A process that says what it has to say where we do, with our whole environment. Its process group is its own."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start it; raises ``CommandFailed`` when it cannot be."""
        how = {"stdin": subprocess.DEVNULL, "process_group": 0}
        self._process = _popen(argv, environment=settings.environment(), cwd=None, user=None, group=None, **how)
        self.pid = self._process.pid

    def status(self) -> int | None:
        """Its exit status, 128 and the number of the signal that ended it; None while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send it a signal; harmless when it has ended."""
        self._process.send_signal(number)


def end_with_parent() -> None:
    """Have the kernel send us SIGTERM when the process that started us ends, however that is."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Facts(msgspec.Struct, frozen=True):
    """What the kernel says of a running process."""

    state: str
    """``R``, ``S``, ``D``; ``T`` when it was stopped by a signal."""
    group: int
    birth: int
    """When it started, in clock ticks since boot: with the id it names one process of this boot."""


def facts(pid: int) -> Facts | None:
    """The facts of a process, None when it has ended; what ``start_detached`` started and has ended is reaped."""
    try:
        # the name in parentheses may hold anything, so count from behind it
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state = fields[0].decode()
    if state not in "ZX":
        return Facts(state, group=int(fields[2]), birth=int(fields[19]))
    if pid in _detached:
        _detached.discard(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return None


def _popen(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None,
    cwd: Path | None,
    user: str | None,
    group: str | None,
    **how: Any,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            bufsize=0,
            env={**_inherited(), **(environment or {})},
            cwd=cwd,
            **_identity(argv[0], user, group),
            **how,
        )
    except FileNotFoundError as error:
        if cwd is not None and not cwd.is_dir():
            raise _command_failed(argv[0], f"cannot start: there is no folder {cwd}") from error
        raise _no_program(argv[0]) from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _command_failed(argv[0], f"cannot be started: {reason}", status=_NOT_EXECUTABLE) from error


def _inherited() -> dict[str, str]:
    return {
        name: value
        for name, value in settings.environment().items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


def _identity(program: str, user: str | None, group: str | None) -> dict[str, Any]:
    """The arguments that make the command another user's; none when it is to be ours."""
    try:
        entry = pwd.getpwnam(user) if user else None
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid if entry else None
    except KeyError as error:
        raise _command_failed(program, f"cannot be started: no such user or group: {user or group}") from error
    if gid is None or (os.geteuid() == (entry.pw_uid if entry else os.geteuid()) and gid == os.getegid()):
        return {}
    if os.geteuid() != 0:
        raise errors.CommandFailed(
            f"{program} cannot be started as user {user or os.geteuid()}: only root may change users",
            status=_NOT_EXECUTABLE,
            remedy="Run as root, or as that user.",
        )
    groups = os.getgrouplist(entry.pw_name, gid) if entry else []
    return {"user": entry.pw_uid if entry else None, "group": gid, "extra_groups": groups}


def _no_program(program: str) -> errors.CommandFailed:
    return errors.CommandFailed(
        f"there is no program {program}",
        status=NOT_FOUND,
        remedy=f"Install the package that brings {Path(program).name}, or put it on the PATH.",
    )


def _command_failed(program: str, outcome: str, *, status: int | None = None, stderr: str = "") -> errors.CommandFailed:
    said = stderr.strip().rsplit("\n", 1)[-1].strip()
    return errors.CommandFailed(f"{program} {outcome}{': ' + said if said else ''}", status=status, stderr=stderr)
