"""A Redis or Valkey server as a source: the dump that a save forked at the instant writes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Final

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.model import Fingerprint, Gap, Part, PartFile, SourceRef
from cosmos_coherence.parts import Sink
from cosmos_coherence.sources import redis_session as sessions
from cosmos_coherence.sources.redis_dump import DumpCheck
from cosmos_coherence.sources.redis_session import Session, argument

_CHUNK: Final = 1 << 20
_POLL_S: Final = 0.02
_PAUSE_S: Final = 1.5
"""So long at most the server keeps writes waiting."""
_SAID: Final = 4096
_BUSY: Final = ("loading", "rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled")
_QUIET: Final = {"save": "", "auto-aof-rewrite-percentage": "0"}
"""What keeps the server from starting a save or rewrite by itself."""
_PLACES: Final = ("dir", "dbfilename", "appendonly", "appenddirname", "appendfilename", "aclfile")
_USUAL: Final = {"dir": ".", "dbfilename": "dump.rdb"}
"""Where a dump lies when the server does not say: in the folder that its container starts in."""

_REMOVE: Final = """\
remove() {
    case $1 in *.only.rdb) [ ! "$1" -ef "$2" ] || rm -f "$2" ;; esac
    rm -f "$1"
}
"""
"""A dump where none was before goes too: a server that never saves would start with it next time, and not empty."""
_SWEEP: Final = _REMOVE + 'for kept in "$1"/.cosmos-*.rdb; do remove "$kept" "$1/$2"; done'
_IS_THERE: Final = 'if [ -e "$1/$2" ]; then echo there; fi'
_KEEP: Final = (
    _REMOVE
    + """\
ln "$1" "$2" 2>/dev/null || cp "$1" "$2" || { rm -f "$2"; exit 1; }
echo kept
read -r word
remove "$2" "$1"
"""
)
"""Until its input ends, as it does when we die, too: what began before then must not leave a file after the healing."""
_CHECK: Final = """\
for tool in redis-check-rdb valkey-check-rdb; do
    command -v $tool >/dev/null && exec $tool "$1"
done
exit 0
"""


class RedisSource:
    """Captures a server as ``redis/dump.rdb`` (``primary``) or ``redis/<service>/dump.rdb``."""

    def __init__(self, ref: SourceRef, runtime: Runtime, run: str, *, primary: bool = True) -> None:
        self._ref, self._runtime, self._run = ref, runtime, run
        self._stream = "redis/dump.rdb" if primary else f"redis/{ref.service}/dump.rdb"
        self._session: Session | None = None
        self._changed: dict[str, str] = {}
        self._quiet = False
        self._alone: bool | None = None
        """Whether the server has no dump and makes none by itself."""
        self._places: dict[str, str] = {}
        self._server = sessions.Server("redis", "")
        self._anchor_s = 0
        self._clients: tuple[tuple[str, str], ...] = ()
        self._anchored_at = ""
        self._keys: dict[str, int] = {}
        self._expiring: dict[str, int] = {}

    @property
    def ref(self) -> SourceRef:
        """What it captures."""
        return self._ref

    def settings_to_restore(self) -> Mapping[str, str]:
        """The settings that ``prepare`` is going to change, as they are now: to be journalled first.

        Empty where this user may not read them; the cut then goes without.
        """
        with self._open() as session:
            found = {name: session.config(name) for name in _QUIET}
        return {name: value for name, value in found.items() if value is not None and value != _QUIET[name]}

    def prepare(self, sink: Sink) -> None:
        """Connect, keep saves from starting by themselves, and wait out one that runs.

        Raises ``Unsupported`` for a replica, a cluster's node or a sentinel, and what a session raises.
        """
        self.close()
        wanted = self.settings_to_restore()
        session = self._session = self._open()
        self._server = sessions.server(sessions.require_alone(session, self._ref.service))
        session.permitted(session.ask("TIME"))
        never = session.config("save") == ""
        for name, value in wanted.items():
            if not sessions.fault(session.ask(f"CONFIG SET {name} {argument(_QUIET[name])}")):
                self._changed[name] = value
        self._quiet = all(session.config(name) == value for name, value in _QUIET.items())
        found = {name: session.config(name) for name in _PLACES}
        self._places = _USUAL | {name: value for name, value in found.items() if value}
        self._command(_SWEEP, self._places["dir"], self._places["dbfilename"])
        if self._alone is None:
            self._alone = never and not self._command(_IS_THERE, self._places["dir"], self._places["dbfilename"])
        _await_saves(session)
        self._clients = tuple(_others(session))

    def anchor(self) -> Callable[[], None] | None:
        """Have the server keep writes waiting; what is left to be done is the fork of the save, after which they go on.

        That takes 10 to 40 ms a GiB in which the server answers nobody, but nobody has to be held for it. Where this
        user may not pause clients the fork itself is waited for. The server takes writes again by itself should we die.

        Raises, at once or from what is left, ``CutFailed`` when another save or rewrite has begun or the fork took too
        long, ``CaptureFailed`` when the server cannot fork.
        """
        assert self._session is not None
        self._anchored_at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        until = time.monotonic() + _PAUSE_S
        if sessions.fault(self._session.ask(f"CLIENT PAUSE {_PAUSE_S * 1000:.0f} WRITE")):
            self._fork(until=None)
            return None
        return lambda: self._fork(until)

    def _fork(self, until: float | None) -> None:
        """What the server holds when it answers, the dump will hold. It keeps writes waiting ``until`` (monotonic)."""
        assert self._session is not None
        asked = ("TIME", "INFO keyspace", "BGSAVE", "INFO keyspace")
        time_, before, answer, after, *_ = self._session.each(*asked, *(("CLIENT UNPAUSE",) if until else ()))
        self._session.permitted(answer)
        if not answer or not answer[0].startswith("Background saving started"):
            reason = answer[0] if answer else "no answer"
            if re.search("progress|scheduled|child process", reason):
                raise errors.CutFailed(f"Redis in {self._ref.service} had begun to save or rewrite: {reason}")
            raise self._unsaved(reason)
        if until is not None and time.monotonic() > until:
            raise errors.CutFailed(
                f"Redis in {self._ref.service} took longer than {_PAUSE_S:g} s to fork its save, and took writes before"
            )
        self._anchor_s = int(time_[0])
        self._keys, self._expiring = _counts(sessions.keyspace(before), sessions.keyspace(after))

    def capture(self, sink: Sink) -> Part:
        """Wait for the save, keep its file from being replaced, check it and write it to the sink.

        Raises ``CaptureFailed`` when the save failed, was replaced by a later one, or left no whole dump.
        """
        assert self._session is not None
        saved = _await_saves(self._session)
        if saved["rdb_last_bgsave_status"] != "ok":
            raise self._unsaved("the save failed")
        folder = self._places["dir"].rstrip("/")
        kept = f"{folder}/.cosmos-{self._run}{'.only' if self._alone else ''}.rdb"
        try:
            with self._kept(f"{folder}/{self._places['dbfilename']}", kept):
                if _saves(self._session.info("persistence")) != _saves(saved):
                    raise self._unsaved("another save replaced it")
                self._command(_CHECK, kept)
                file = self._copy(sink, kept)
        finally:
            with suppress(errors.CosmosError):
                self._command(_SWEEP, folder, self._places["dbfilename"])
        details = {**self._places, "server": self._server.name, "stream": self._stream}
        if not self._quiet:
            details["saves"] = "could start by themselves: this user may not change the settings"
        return Part(
            name=self._ref.part,
            kind="redis",
            files=(file,),
            service=self._ref.service,
            volume=self._ref.volume,
            anchored_at=self._anchored_at,
            version=self._server.version,
            details=details,
            fingerprint=Fingerprint(keys=self._keys, expiring_keys=self._expiring),
        )

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The file of its users when it lies beside the data, where no other source looks; else all is captured."""
        users, folder = self._places.get("aclfile", ""), PurePosixPath(self._places.get("dir", "."))
        if not users or (folder / users).parent != folder:
            return ()
        return (
            Gap(f"users of {self._ref.service} in {users}", "no dump holds them; keep them on a mount of their own"),
        )

    def clients(self) -> tuple[tuple[str, str], ...]:
        """(address, name) of every other client, as ``prepare`` found them; no address for a local one."""
        return self._clients

    def close(self) -> None:
        """Put the settings back and disconnect. A server that we may not silence is not left refusing writes either."""
        if self._session is not None:
            with suppress(errors.CosmosError):
                if self._anchored_at and not self._quiet:
                    _require_good_save(self._session)
                _put_back(self._session, self._changed)
            self._session.close()
        self._session, self._changed = None, {}

    def _open(self) -> Session:
        return Session(self._runtime, self._ref.service, self._run)

    @contextmanager
    def _kept(self, dump: str, name: str) -> Iterator[None]:
        """The dump under another name, where no later save replaces it, for as long as the block lasts."""
        try:
            with self._runtime.run(self._ref.service, ["sh", "-c", _KEEP, "sh", dump, name], stdin=True) as keeper:
                if keeper.stdout.readline() != b"kept\n":
                    keeper.wait()
                yield
        except errors.CommandFailed as error:
            raise self._unsaved(error.stderr.strip() or error.message) from error

    def _command(self, script: str, *argv: str) -> bytes:
        child = self._runtime.run(self._ref.service, ["sh", "-c", script, "sh", *argv])
        said = b""
        try:
            with child:
                said = child.stdout.read()[-_SAID:]
        except errors.CommandFailed as error:
            text = said.decode("utf-8", "replace").strip() or error.stderr.strip() or error.message
            raise self._unsaved(text.splitlines()[-1]) from error
        return said

    def _copy(self, sink: Sink, path: str) -> PartFile:
        check = DumpCheck()
        try:
            with sink.stream(self._stream) as out:
                with self._runtime.run(self._ref.service, ["cat", path]) as child:
                    while piece := child.stdout.read(_CHUNK):
                        check.feed(piece)
                        out.write(piece)
                check.finish()
                # the dump's second is read from a coarser clock, which may lag by a tick
                if check.made_at is not None and check.made_at < self._anchor_s - 1:
                    raise self._unsaved("the dump is older than the instant")
        except (errors.CommandFailed, errors.Damaged) as error:
            raise self._unsaved(error.message) from error
        return out.file()

    def _unsaved(self, reason: str) -> errors.CaptureFailed:
        return errors.CaptureFailed(
            f"Redis in {self._ref.service} left no dump of the instant: {reason}",
            remedy="Look at its log: a save needs memory for a copy of what changes meanwhile, and room on its disk.",
        )


def remove_leftovers(runtime: Runtime, service: str) -> None:
    """Remove the dumps that a killed run had the server keep. What a session raises, ``CommandFailed``."""
    with Session(runtime, service, "recover") as session:
        places = [session.config(name) or usual for name, usual in _USUAL.items()]
    with runtime.run(service, ["sh", "-c", _SWEEP, "sh", *places]):
        pass


def restore_settings(runtime: Runtime, service: str, values: Mapping[str, str]) -> None:
    """Put back what ``settings_to_restore`` said, after a crash. ``ServiceDown``, ``AccessDenied``; ``CommandFailed``
    while the server cannot save, since with its save points it would refuse every write then."""
    if values:
        with Session(runtime, service, "recover") as session:
            _put_back(session, values)


def _put_back(session: Session, values: Mapping[str, str]) -> None:
    if values.get("save"):
        _require_good_save(session)
    for name, value in values.items():
        if name in _QUIET and (fault := sessions.fault(session.ask(f"CONFIG SET {name} {argument(value)}"))):
            raise errors.CommandFailed(f"the setting {name} cannot be put back to {value!r}: {fault}")


def _require_good_save(session: Session) -> None:
    """With save points, a server whose last save failed refuses every write. Ours may have failed: one has to succeed.

    Raises ``CommandFailed`` when it does not; without save points the server takes writes meanwhile.
    """
    if _await_saves(session).get("rdb_last_bgsave_status", "ok") == "ok":
        return
    session.ask("BGSAVE")
    if _await_saves(session)["rdb_last_bgsave_status"] != "ok":
        raise errors.CommandFailed("the server cannot save; with its save points back it would refuse every write")


def _await_saves(session: Session) -> Mapping[str, str]:
    """The section ``persistence`` once nothing is being saved, rewritten or loaded."""
    while True:
        info = session.info("persistence")
        if not any(info.get(name, "0") == "1" for name in _BUSY):
            return info
        time.sleep(_POLL_S)


def _others(session: Session) -> Iterator[tuple[str, str]]:
    for line in session.ask("CLIENT LIST"):
        client = dict(item.partition("=")[::2] for item in line.split())
        if "addr" in client and client.get("name") != session.name:
            address = client["addr"].rpartition(":")[0].strip("[]")
            yield "" if address.startswith("/") else address, client.get("name", "")


def _saves(info: Mapping[str, str]) -> tuple[str | None, str | None]:
    return info.get("rdb_last_save_time"), info.get("rdb_saves")


def _counts(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Keys without an expiry and, as a bound, those with one.

    Where somebody outside of the hold wrote between the two looks, the save may have caught either: all of its keys
    count as a bound then.
    """
    keys: dict[str, int] = {}
    bounds: dict[str, int] = {}
    for database in sorted({*before, *after}):
        first, second = before.get(database, (0, 0)), after.get(database, (0, 0))
        if first[0] == second[0]:
            keys[database] = first[0]
            bounds[database] = max(first[1], second[1])
        else:
            bounds[database] = max(sum(first), sum(second))
    return keys, bounds
