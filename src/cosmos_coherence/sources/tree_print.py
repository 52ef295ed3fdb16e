"""The fingerprint of a file tree: one digest over every name with its metadata and the hash of its content."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Final

from cosmos_coherence.content_digest import ContentDigest
from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers.folders import Folders, Xattrs, open_file, xattrs, xattrs_at
from cosmos_coherence.model import Entry, TreePrint
from cosmos_coherence.sources import tree_scan

_PIECE: Final = 256 << 10

Hashed = tuple[Entry, str]
"""An entry with the digest of its content, empty for what is no regular file."""


def line(entry: Entry, digest: str) -> bytes:
    """The canonical line of one name: fields that hold no NUL, joined by NUL, then the attributes in pairs.

    A hard link says only what it links to, since its metadata are those of the file. The mode of a symlink means
    nothing. The time of the root is left out: swapping its content in changes it.
    """
    return _line(entry, entry.xattrs, digest)


def _line(entry: Entry | Found, attributes: Xattrs, digest: str) -> bytes:
    if entry.kind == "file" and entry.path and not attributes:
        return b"%b\0file\0%o\0%d:%d\0%d\0%d\0%b\n" % (
            entry.path, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, digest.encode()
        )  # fmt: skip
    link = entry.kind == "hardlink"
    fields = [entry.path, entry.kind.encode()]
    if not link:
        fields += [
            b"" if entry.kind == "symlink" else b"%o" % entry.mode,
            b"%d:%d" % (entry.uid, entry.gid),
            b"%d" % entry.mtime_ns if entry.path else b"",
        ]
    if entry.kind == "file":
        fields += [b"%d" % entry.size, digest.encode()]
    elif entry.kind in ("char", "block"):
        fields.append(b"%d:%d" % entry.device)
    else:
        fields.append(entry.target)
    for name, value in () if link else attributes:
        fields += [name.encode(), value.hex().encode()]
    return b"\0".join(fields) + b"\n"


def tree_print(hashed: Iterable[Hashed]) -> TreePrint:
    """The fingerprint of these entries, whatever their order."""
    return _print((entry, entry.xattrs, digest) for entry, digest in sorted(hashed, key=lambda pair: pair[0].path))


def print_of(names: Iterable[Copied]) -> TreePrint:
    """The fingerprint of what was copied, given in byte order of the paths."""
    return _print((each.found, each.xattrs, each.digest) for each in names)


def _print(names: Iterable[tuple[Entry | Found, Xattrs, str]]) -> TreePrint:
    counts: Counter[str] = Counter()
    size = 0
    lines = hashlib.sha256()
    for entry, attributes, digest in names:
        kind = entry.kind
        counts[kind] += 1
        if kind == "file":
            size += entry.size
        lines.update(_line(entry, attributes, digest))
    files, directories = counts["file"] + counts["hardlink"], counts["dir"]
    return TreePrint(
        files=files, directories=directories, others=counts.total() - files - directories, size=size,
        digest=lines.hexdigest(),
    )  # fmt: skip


def print_of_tree(root: Path) -> TreePrint:
    """The fingerprint of what lies on the disk; every byte is read. Raises ``CaptureFailed``."""
    return tree_print(hashed_tree(root))


def hashed_tree(root: Path, only: frozenset[bytes] = frozenset()) -> Iterator[Hashed]:
    """Every entry on the disk with its hash, in byte order of the paths, the root first. Raises ``CaptureFailed``.

    Of what the root holds ``only`` these names, when there are any.
    """
    scan = tree_scan.walk(root, only=only)
    links = scan.links()
    with Folders(root) as folders:
        for path, found in sorted(scan.names.items()):
            if path in links:
                yield tree_scan.link(found, links[path]).entry(), ""
            else:
                yield hashed(folders, found, root)


def hashed(folders: Folders, found: Found, root: Path) -> Hashed:
    """The entry of one name below ``folders``, and the hash when it is a file. Raises ``CaptureFailed``."""
    try:
        if found.kind != "file":
            return Copied(found, xattrs_at(folders, found.path)).entry(), ""
        opened = open_file(folders, found.path)
        if opened is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with FileIO(opened[0]) as file:
            entry = Copied(found, xattrs(file.fileno())).entry()
            return entry, _digest_of(file)
    except OSError as error:
        raise tree_scan.unreadable(found.path, root, error) from error


def differences(
    expected: Mapping[bytes, str], root: Path, only: frozenset[bytes] = frozenset(), *, at_most: int = 20
) -> tuple[str, ...]:
    """What on the disk is not as expected, for a sentence: the first names that are missing, too many or different.

    ``expected`` maps each path to the SHA-256 of its ``line``. With ``only`` nothing else counts, not even the root.
    Raises ``CaptureFailed``.
    """
    found = {entry.path: line_digest(entry, digest) for entry, digest in hashed_tree(root, only)}
    wrong: list[str] = []
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path) and (path or not only):
            word = "missing" if path not in found else "too many" if path not in expected else "different"
            wrong.append(f"{tree_scan.show(path)} ({word})")
            if len(wrong) == at_most:
                break
    return tuple(wrong)


def line_digest(entry: Entry, digest: str) -> str:
    """SHA-256 of the canonical line, hex: enough to tell later whether a name is as it was."""
    return hashlib.sha256(line(entry, digest)).hexdigest()


def _digest_of(file: FileIO) -> str:
    digest, room = ContentDigest(), memoryview(bytearray(_PIECE))
    while count := file.readinto(room):
        digest.update(room[:count])
    return digest.hexdigest()
