"""Trees: the JSON of one folder, to the byte as restic writes it ("Trees and Data" of its design document).

Whatever is read is hostile until checked: a name is one step of a path, names are in the order of their bytes and none
comes twice.
"""

from __future__ import annotations

import operator
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import gotext
from cosmos_coherence.repository.blob import Id
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.gotext import NO_TIME, json_string, quoted_name

NodeType = Literal["file", "dir", "symlink", "dev", "chardev", "fifo", "socket", "irregular", ""]

_LARGEST_NUMBER: Final = (1 << 64) - 1
_Number = Annotated[int, msgspec.Meta(ge=0)]
_Owner = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_HexId = Annotated[str, msgspec.Meta(min_length=64, max_length=64)]


class Xattr(msgspec.Struct, frozen=True):
    """One extended attribute."""

    name: str
    value: bytes | None = None


class Node(msgspec.Struct, kw_only=True, gc=False):
    """One name of a folder, with the format's fields; ``name`` and ``linktarget`` as in JSON: see the properties."""

    name: str
    type: NodeType
    mode: _Number = 0
    """Go's bits, ``gotext.permissions`` has Unix's."""
    mtime: str = NO_TIME
    atime: str = NO_TIME
    ctime: str = NO_TIME
    uid: _Owner = 0
    gid: _Owner = 0
    user: str = ""
    group: str = ""
    inode: _Number = 0
    device_id: _Number = 0
    """With ``inode`` it says which names are the same file, where ``links`` is more than 1."""
    size: _Number = 0
    links: _Number = 0
    linktarget: str = ""
    linktarget_raw: bytes | None = None
    """Given where the target is not UTF-8."""
    extended_attributes: list[Xattr] = []
    generic_attributes: msgspec.Raw = msgspec.Raw()
    """Of other systems; kept as it is."""
    device: _Number = 0
    """``st_rdev`` of a device."""
    content: list[_HexId] | None = None
    """Ids of a file's data blobs in their order; empty for an empty file, None for everything else."""
    subtree: _HexId | None = None
    """Id of a folder's tree."""
    error: str = ""

    @property
    def file_name(self) -> bytes:
        """The name as it is on the disk. A tree that was decoded has only names that are safe to join to a path."""
        return gotext.unquote(self.name) if "\\" in self.name else self.name.encode()

    @property
    def target(self) -> bytes:
        """Where a symlink points."""
        return self.linktarget.encode() if self.linktarget_raw is None else self.linktarget_raw

    @property
    def blobs(self) -> list[Id]:
        """The data blobs of a file."""
        return [bytes.fromhex(text) for text in self.content or ()]

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return gotext.parse_time(self.mtime)

    @property
    def ctime_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return gotext.parse_time(self.ctime)


class _Tree(msgspec.Struct, gc=False):
    nodes: list[Node] | None = None


_decoder: Final = msgspec.json.Decoder(_Tree)


def node(
    name: bytes,
    kind: NodeType,
    *,
    target: bytes | None = None,
    xattrs: Mapping[str, bytes] | None = None,
    **fields: object,
) -> Node:
    """A node from plain values: the fields of ``Node``, but ``mtime``, ``atime`` and ``ctime`` are nanoseconds."""
    for time in ("mtime", "atime", "ctime"):
        if isinstance(value := fields.get(time), int):
            fields[time] = gotext.format_time(value)
    made = Node(name=gotext.quote(name), type=kind, **fields)  # type: ignore[arg-type]
    if target is not None:
        try:
            made.linktarget = target.decode()
        except UnicodeDecodeError:
            made.linktarget = target.decode("utf-8", "surrogateescape")
            made.linktarget_raw = target
    if xattrs:
        made.extended_attributes = [Xattr(name, xattrs[name]) for name in sorted(xattrs)]
    return made


def encode(nodes: Iterable[Node]) -> bytes:
    """The bytes of a tree. The nodes must come in the order of their names' bytes; else ``AssertionError``."""
    written: list[str] = []
    last = b""
    for each in nodes:
        name = each.file_name
        assert name > last, f"{name!r} after {last!r}"
        last = name
        written.append(_encode(each, name))
    return joined(written)


def joined(pieces: Iterable[str]) -> bytes:
    """The bytes of a tree of nodes that are encoded already and in order."""
    return ('{"nodes":[' + ",".join(pieces) + "]}\n").encode("utf-8")


def encode_node(each: Node) -> str:
    """The JSON of one node, for trees that are put together from pieces."""
    return _encode(each, each.file_name)


def decode(plain: Buffer) -> list[Node]:
    """The nodes of a tree. Raises ``Damaged`` for what is no tree, ``Hostile`` for names that may not be."""
    try:
        nodes = _decoder.decode(plain).nodes or []
        _check_names([each.file_name for each in nodes])
        _check(nodes)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"not a tree: {error}") from error
    return nodes


# All of a tree at once, as far as that goes: a restore waits for the check of every name.
def _check_names(names: Sequence[bytes]) -> None:
    if any(map(operator.ge, names, names[1:])) or b"" in names:
        raise errors.Hostile("a tree has names in the wrong order, twice, or empty")
    together = b"".join(names)
    if b"/" in together or b"\0" in together or b"." in names or b".." in names:
        raise errors.Hostile("a tree has a name that is not one step of a path")


def _check(nodes: Sequence[Node]) -> None:
    times: set[str] = set()
    ids: list[str] = []
    for each in nodes:
        if (each.mode | each.inode | each.device_id | each.size | each.links | each.device) > _LARGEST_NUMBER:
            raise ValueError("a number out of range")
        times.update((each.mtime, each.atime, each.ctime))
        if each.content:
            ids += each.content
        if each.subtree is not None:
            ids.append(each.subtree)
        if (each.linktarget or each.linktarget_raw) and b"\0" in each.target:
            raise errors.Hostile("a symlink has a target that cannot be")
        if each.extended_attributes and any("\0" in xattr.name or not xattr.name for xattr in each.extended_attributes):
            raise errors.Hostile("an extended attribute has a name that cannot be")
    gotext.check_times(times)
    if len(bytes.fromhex("".join(ids))) != 32 * len(ids):  # spaces do not count
        raise ValueError("an id is not 64 hex digits")


def _encode(each: Node, name: bytes) -> str:
    # The order of the fields is the format's, and a field that is empty is left out, as in Go.
    parts = [f'{{"name":{quoted_name(name)},"type":"{each.type}"']
    if each.mode:
        parts.append(f'"mode":{each.mode}')
    parts.append(
        f'"mtime":"{each.mtime}","atime":"{each.atime}","ctime":"{each.ctime}","uid":{each.uid},"gid":{each.gid}'
    )
    if each.user:
        parts.append(f'"user":{json_string(each.user)}')
    if each.group:
        parts.append(f'"group":{json_string(each.group)}')
    if each.inode:
        parts.append(f'"inode":{each.inode}')
    if each.device_id:
        parts.append(f'"device_id":{each.device_id}')
    if each.size:
        parts.append(f'"size":{each.size}')
    if each.links:
        parts.append(f'"links":{each.links}')
    if each.linktarget or each.linktarget_raw:
        text = each.linktarget_raw or each.linktarget
        parts.append(f'"linktarget":{json_string(text)}')
    if each.linktarget_raw:
        parts.append(f'"linktarget_raw":"{b64encode(each.linktarget_raw).decode()}"')
    if each.extended_attributes:
        parts.append('"extended_attributes":[' + ",".join(map(_encode_xattr, each.extended_attributes)) + "]")
    if generic := bytes(each.generic_attributes):
        parts.append(f'"generic_attributes":{generic.decode()}')
    if each.device:
        parts.append(f'"device":{each.device}')
    if each.content is None:
        parts.append('"content":null')
    else:
        parts.append('"content":[' + ",".join([f'"{text}"' for text in each.content]) + "]")
    if each.subtree is not None:
        parts.append(f'"subtree":"{each.subtree}"')
    if each.error:
        parts.append(f'"error":{json_string(each.error)}')
    return ",".join(parts) + "}"


def _encode_xattr(xattr: Xattr) -> str:
    value = "null" if xattr.value is None else f'"{b64encode(xattr.value).decode()}"'
    return f'{{"name":{json_string(xattr.name)},"value":{value}}}'
