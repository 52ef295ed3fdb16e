"""What every name of a tree takes, so that a sum stays right when only what has changed is looked at again.

It keeps three numbers for each file (its name's hash, its inode, its blocks) and nothing else: 24 bytes. Two names of
one folder have the same hash once in some hundred million folders of 100,000 files.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Final

from cosmos_coherence.drivers.bulk_stat import BulkStat
from cosmos_coherence.volumes.usage import Usage

_BLOCK: Final = 512
_KIND: Final = 0o170000


@dataclass(slots=True)
class Record:
    """What is known of one folder: itself, its files of one name, its names of files that have several."""

    own: int = 0
    names: array[int] = field(default_factory=lambda: array("q"))
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    blocks: array[int] = field(default_factory=lambda: array("Q"))
    linked: dict[bytes, int] | None = None
    """Inode by name."""
    lowest: int = 1 << 64
    highest: int = 0
    """No inode lies outside: most file systems give the files of one folder numbers that are close to each other."""

    def within(self, inodes: Sequence[int]) -> None:
        """These come in, too."""
        if inodes:
            lowest, highest = min(inodes), max(inodes)
            self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)


@dataclass(slots=True)
class Shared:
    """A file with several names: how many of them are in the tree, and how many it has in all."""

    blocks: int
    here: int
    names: int


@dataclass
class Ledger:
    """A ``Counter`` that remembers. Paths as there."""

    unreadable: int = 0
    records: dict[bytes, Record] = field(default_factory=dict)
    shared: dict[int, Shared] = field(default_factory=dict)
    blocks: int = 0
    files: int = 0
    unsure: set[int] = field(default_factory=set)
    """Files that turned out to have further names, which may stand in the ledger as if they were files of one name, or
    that have lost one, through which they may have been written."""

    @property
    def usage(self) -> Usage:
        """The sum of it."""
        return Usage(self.blocks * _BLOCK, self.files, len(self.records), self.unreadable)

    def fresh(self) -> Ledger:
        """See ``Counter``."""
        return Ledger()

    def merge(self, other: Ledger) -> None:
        """See ``Counter``. Of one folder one process knows itself, another what is in it, and itself later."""
        self.unreadable += other.unreadable
        self.blocks += other.blocks
        self.files += other.files
        self.unsure |= other.unsure
        for path, theirs in other.records.items():
            mine = self.records.setdefault(path, theirs)
            if mine is not theirs:
                self.blocks -= min(mine.own, theirs.own)
                mine.own = max(mine.own, theirs.own)
                mine.names.extend(theirs.names)
                mine.inodes.extend(theirs.inodes)
                mine.within(theirs.inodes)
                mine.blocks.extend(theirs.blocks)
                mine.linked = mine.linked or theirs.linked
        for inode, found in other.shared.items():
            known = self.shared.get(inode)
            if known is None:
                self.shared[inode] = found
            else:
                known.here += found.here
                self.blocks -= found.blocks
                self.files -= 1

    def folder(self, path: bytes, blocks: int) -> None:
        """See ``Counter``; also for one that is known, whose own size may have changed."""
        record = self._record(path)
        self.blocks += blocks - record.own
        record.own = blocks

    def enter(self, folder: int, path: bytes) -> None:
        """See ``Counter``. All that is in it is going to be told, be some of it known or not."""
        if path in self.records:
            self.empty(path)

    def take(self, seen: BulkStat, names: Sequence[bytes], path: bytes, device: int) -> list[bytes]:
        """See ``Counter``. Folders that are known already are not returned."""
        record = self._record(path)
        modes, links, devices = seen.modes(), seen.links(), seen.devices()
        inodes, blocks = seen.inodes(), seen.blocks()
        folders: list[bytes] = []
        single = [True] * len(names)
        if max(links, default=1) > 1 or devices.count(device) != len(devices) or any(map(stat.S_ISDIR, set(modes))):
            prefix = path + b"/" if path else b""
            for at, name in enumerate(names):
                single[at] = False
                if devices[at] != device:
                    continue
                if stat.S_ISDIR(modes[at]):
                    if prefix + name not in self.records:
                        folders.append(prefix + name)
                    self.folder(prefix + name, blocks[at])
                elif links[at] > 1:
                    self._link(record, name, inodes[at], Shared(blocks[at], 1, links[at]))
                else:
                    single[at] = True
        before = len(record.names)
        record.names.extend(map(hash, compress(names, single)))
        record.inodes.extend(compress(inodes, single))
        record.within(record.inodes[before:])
        record.blocks.extend(compress(blocks, single))
        self.files += len(record.names) - before
        self.blocks += sum(record.blocks[before:])
        return folders

    def forget(self, path: bytes, names: Iterable[bytes]) -> None:
        """Nothing is known of these names of the folder ``path`` any more; a folder among them stays."""
        record = self.records[path]
        for name in names:
            if record.linked and (inode := record.linked.pop(name, None)) is not None:
                self._unlink(inode)
                continue
            try:
                at = record.names.index(hash(name))
            except ValueError:
                continue
            self.files -= 1
            self.blocks -= record.blocks[at]
            for column in (record.names, record.inodes, record.blocks):
                column[at] = column[-1]
                column.pop()

    def empty(self, path: bytes) -> None:
        """Nothing is known of what lies in this folder any more, but for the folders in it."""
        record = self.records[path]
        self.files -= len(record.names)
        self.blocks -= sum(record.blocks)
        for inode in (record.linked or {}).values():
            self._unlink(inode)
        self.records[path] = Record(record.own)

    def drop(self, folders: Collection[bytes]) -> set[bytes]:
        """These folders have gone with all that is below them; the paths of all of them."""
        known = {path for path in folders if path in self.records}
        prefixes = tuple(path + b"/" for path in known)
        gone = {path for path in self.records if path in known or path.startswith(prefixes)} if known else set()
        for path in gone:
            self.empty(path)
            self.blocks -= self.records.pop(path).own
        return gone

    def holding(self, inodes: set[int]) -> list[bytes]:
        """The folders in which one of these files stands."""
        wanted = sorted(inodes)
        return [
            path
            for path, record in self.records.items()
            if (
                (at := bisect_left(wanted, record.lowest)) < len(wanted)
                and wanted[at] <= record.highest
                and not inodes.isdisjoint(record.inodes)
            )
            or (record.linked and not inodes.isdisjoint(record.linked.values()))
        ]

    def standing(self, path: bytes, inodes: set[int]) -> tuple[set[bytes], set[int]]:
        """Where these files stand in the folder ``path``: the names of those that are known to have several, the hashes
        of the names of the others."""
        record = self.records[path]
        names = {name for name, inode in (record.linked or {}).items() if inode in inodes}
        hashes = set(compress(record.names, map(inodes.__contains__, record.inodes)))
        return names, hashes

    def _record(self, path: bytes) -> Record:
        known = self.records.get(path)
        if known is None:
            known = self.records[path] = Record()
        return known

    def _link(self, record: Record, name: bytes, inode: int, found: Shared) -> None:
        if record.linked is None:
            record.linked = {}
        record.linked[name] = inode
        known = self.shared.get(inode)
        if known is None:
            self.shared[inode] = found
            self.blocks += found.blocks
            self.files += 1
            self.unsure.add(inode)
            return
        if found.names > known.names:
            self.unsure.add(inode)
        self.blocks += found.blocks - known.blocks
        known.here, known.blocks, known.names = known.here + 1, found.blocks, found.names

    def _unlink(self, inode: int) -> None:
        known = self.shared[inode]
        known.here -= 1
        if known.here:
            self.unsure.add(inode)  # it may have been written through the name that has gone
        else:
            del self.shared[inode]
            self.blocks -= known.blocks
            self.files -= 1
