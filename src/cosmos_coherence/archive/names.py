"""Names: of parts as the sources say them, of files as an archive holds them, and which of them are safe."""

from __future__ import annotations

from urllib.parse import quote, unquote

from cosmos_coherence import errors

LATEST = "latest.tar.gz"
SAFETY_PREFIX = "safety-"
SPOOL_PREFIX = ".spool-"
CONFIGS = "configs"
"""The tree whose files lie in the archive as they are."""
AOF_BASE = "appendonly.aof.1.base.rdb"
AOF_MANIFEST = f"file {AOF_BASE} seq 1 type b\n".encode()
_TREES = ("volumes", "files")
_LONGEST_PATH = 32 * 1024


def stream_file(name: str) -> str:
    """Where an archive keeps the stream ``name``. ``Refused`` for a name that no source gives.

    Databases may have any name: odd characters are percent-encoded, a slash in the last step included.
    """
    steps = name.split("/", 2) if name.startswith("databases/") else name.split("/")
    if steps[0] in (*_TREES, CONFIGS) or any(step in ("", ".", "..") for step in steps):
        raise errors.Refused(f"a backup cannot hold a stream named {name!r}")
    path = "/".join(quote(step, safe="", errors="surrogateescape") for step in steps)
    return path if steps[0] == "redis" else path + ".gz"


def tree_file(name: str) -> str:
    """Where an archive keeps the tree ``name``. ``Refused`` for a name that no source gives."""
    if name == CONFIGS:
        return CONFIGS
    kind, _, rest = name.partition("/")
    if kind not in _TREES or rest in ("", ".", ".."):
        raise errors.Refused(f"a backup cannot hold a tree named {name!r}")
    return f"{kind}/{quote(rest, safe='', errors='surrogateescape')}.tar.gz"


def is_redis_dump(path: str) -> bool:
    """Whether the stored file is a Redis dump, from which an AOF folder is built."""
    return path.startswith("redis/") and path.endswith("/dump.rdb")


def aof_base(dump: str) -> str:
    """The data file of the AOF folder built from a dump."""
    return dump.removesuffix("dump.rdb") + f"appendonlydir/{AOF_BASE}"


def aof_manifest(dump: str) -> str:
    """The manifest of the AOF folder built from a dump."""
    return dump.removesuffix("dump.rdb") + "appendonlydir/appendonly.aof.manifest"


def is_tree(path: str) -> bool:
    """Whether the stored file is a tree, not a stream."""
    return path == CONFIGS or path.startswith(tuple(f"{kind}/" for kind in _TREES))


def logical(path: str) -> str:
    """The name that ``stream_file`` or ``tree_file`` gave this path to."""
    if not path.startswith("redis/"):
        path = path.removesuffix(".tar.gz" if is_tree(path) else ".gz")
    return unquote(path, errors="surrogateescape")


def safe(path: bytes) -> bytes:
    """``path`` itself when it is relative and stays below its root (``b""``), else ``Hostile``."""
    if path and (
        len(path) > _LONGEST_PATH or b"\0" in path or any(step in (b"", b".", b"..") for step in path.split(b"/"))
    ):
        raise errors.Hostile(f"the archive holds a file named {shown(path[:200])}, outside of its folder")
    return path


def shown(path: bytes) -> str:
    """A path for people: never fails, never prints control characters."""
    return ascii(path.decode("utf-8", "surrogateescape"))[1:-1]
