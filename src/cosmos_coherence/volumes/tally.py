"""What is counted while a tree is walked, so that the counts of several walkers can be put together."""

from __future__ import annotations

import heapq
import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from typing import Final, NamedTuple

from cosmos_coherence.drivers.bulk_stat import BulkStat
from cosmos_coherence.volumes.usage import Usage

BLOCK: Final = 512
DEPTH: Final = 3
"""Folders are told apart down to so many steps below the root."""
LARGEST: Final = 20
AGES_DAYS: Final = (365, 30, 7, 1)
"""Where one age ends and the next begins, the oldest first; the first has no beginning."""

_DAY_S: Final = 86400
_KIND: Final = 0o170000
_FOLDER: Final = stat.S_IFDIR


class Large(NamedTuple):
    """A file that takes much room."""

    blocks: int
    path: bytes
    size: int
    mtime_s: int


@dataclass(slots=True)
class Tally:
    """The counts, in blocks of 512 bytes. ``now_s`` is the moment from which ages are reckoned."""

    now_s: float
    blocks: int = 0
    files: int = 0
    folders: int = 0
    unreadable: int = 0
    linked: dict[int, Large] = field(default_factory=dict)
    """Files with several names by their inode, under the first of their names (in byte order) that was met."""
    shares: dict[bytes, list[int]] = field(default_factory=dict)
    """Blocks and files by folder down to ``DEPTH``, each without the folders below that have a share of their own."""
    ages: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in range(len(AGES_DAYS) + 1)])
    """Blocks and files by age, the oldest first."""
    largest: list[Large] = field(default_factory=list)
    """A heap: the smallest of them first."""

    @property
    def usage(self) -> Usage:
        """The sum of it. ``settle`` first."""
        return Usage(self.blocks * BLOCK, self.files, self.folders, self.unreadable)

    def fresh(self) -> Tally:
        """An empty one, for another process."""
        return Tally(self.now_s)

    def enter(self, folder: int, path: bytes) -> None:
        """See ``Counter``; nothing to do."""

    def folder(self, path: bytes, blocks: int) -> None:
        """A folder itself."""
        self.blocks += blocks
        self.folders += 1
        self._share(path)[0] += blocks

    def take(self, seen: BulkStat, names: Sequence[bytes], path: bytes, device: int) -> list[bytes]:
        """Count these names of the folder ``path``, and return the paths of those that are folders, to be entered.
        What lies on another device does not count."""
        blocks, mtimes, sizes = seen.blocks(), seen.mtimes(), seen.sizes()
        prefix = path + b"/" if path else b""
        modes, links, devices = seen.modes(), seen.links(), seen.devices()
        kinds = set(modes)
        plain = max(links, default=1) == 1 and not any(mode & _KIND == _FOLDER for mode in kinds)
        if plain and devices.count(device) == len(devices):
            self._add(prefix, path, names, blocks, sizes, mtimes)
            return []
        inodes = seen.inodes()
        folders: list[bytes] = []
        single = [False] * len(names)
        for at, name in enumerate(names):
            if devices[at] != device:
                continue
            if modes[at] & _KIND == _FOLDER:
                folders.append(prefix + name)
                self.folder(folders[-1], blocks[at])
            elif links[at] > 1:
                self._link(inodes[at], Large(blocks[at], prefix + name, sizes[at], mtimes[at]))
            else:
                single[at] = True
        columns = (list(compress(column, single)) for column in (names, blocks, sizes, mtimes))
        self._add(prefix, path, *columns)  # type: ignore[arg-type]
        return folders

    def merge(self, other: Tally) -> None:
        """Add what another walker has counted."""
        self.blocks += other.blocks
        self.files += other.files
        self.folders += other.folders
        self.unreadable += other.unreadable
        for inode, found in other.linked.items():
            self._link(inode, found)
        for path, (blocks, files) in other.shares.items():
            share = self._share(path)
            share[0] += blocks
            share[1] += files
        for mine, (blocks, files) in zip(self.ages, other.ages, strict=True):
            mine[0] += blocks
            mine[1] += files
        self.largest = heapq.nlargest(LARGEST, [*self.largest, *other.largest])[::-1]

    def settle(self) -> None:
        """When all are together: count each file of several names, once, under the first of its names."""
        for found in self.linked.values():
            above, _, name = found.path.rpartition(b"/")
            self._add(above + b"/" if above else b"", above, [name], [found.blocks], [found.size], [found.mtime_s])
        self.linked = {}

    def _add(
        self, prefix: bytes, path: bytes, names: Sequence[bytes], blocks: list[int], sizes: list[int], mtimes: list[int]
    ) -> None:
        if not blocks:
            return
        total = sum(blocks)
        self.blocks += total
        self.files += len(blocks)
        share = self._share(path)
        share[0] += total
        share[1] += len(blocks)
        ends = [self.now_s - days * _DAY_S for days in AGES_DAYS]
        youngest = bisect_right(ends, max(mtimes))
        if bisect_right(ends, min(mtimes)) == youngest:
            self.ages[youngest][0] += total
            self.ages[youngest][1] += len(blocks)
        else:
            for age, each in zip(map(bisect_right, repeat(ends), mtimes), blocks, strict=True):
                self.ages[age][0] += each
                self.ages[age][1] += 1
        floor = self.largest[0].blocks if len(self.largest) == LARGEST else 0
        if max(blocks) > floor:
            for at, each in enumerate(blocks):
                if each > floor:
                    self._remember(Large(each, prefix + names[at], sizes[at], mtimes[at]))

    def _remember(self, found: Large) -> None:
        if len(self.largest) < LARGEST:
            heapq.heappush(self.largest, found)
        else:
            heapq.heappushpop(self.largest, found)

    def _link(self, inode: int, found: Large) -> None:
        known = self.linked.get(inode)
        if known is None or found.path < known.path:
            self.linked[inode] = found

    def _share(self, path: bytes) -> list[int]:
        if path.count(b"/") >= DEPTH:
            path = b"/".join(path.split(b"/", DEPTH)[:DEPTH])
        return self.shares.setdefault(path, [0, 0])
