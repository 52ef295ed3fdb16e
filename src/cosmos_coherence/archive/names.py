"""Names: of parts as the sources say them, of files as an archive holds them, and which of them are safe."""

from __future__ import annotations

from urllib.parse import unquote

from cosmos_coherence import errors
from cosmos_coherence.parts import CONFIGS, TREES, stream_steps, tree_steps

LATEST = "latest.tar.gz"
SAFETY_PREFIX = "safety-"
SPOOL_PREFIX = ".spool-"
AOF_BASE = "appendonly.aof.1.base.rdb"
AOF_MANIFEST = f"file {AOF_BASE} seq 1 type b\n".encode()
_LONGEST_PATH = 32 * 1024


def stream_file(name: str) -> str:
    """Where an archive keeps the stream ``name``. ``Refused`` for a name that no source gives."""
    path = "/".join(stream_steps(name))
    return path if path.startswith("redis/") else path + ".gz"


def tree_file(name: str) -> str:
    """Where an archive keeps the tree ``name``. ``Refused`` for a name that no source gives."""
    steps = tree_steps(name)
    return CONFIGS if steps == (CONFIGS,) else "/".join(steps) + ".tar.gz"


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
    return path == CONFIGS or path.startswith(tuple(f"{kind}/" for kind in TREES))


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
