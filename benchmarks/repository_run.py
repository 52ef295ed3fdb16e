"""Our side of ``benchmarks.repository``, one backup or restore as a program of its own:

``python -m benchmarks.repository_run save|restore REPOSITORY FOLDER``, with the password in the environment.
"""

import os
import socket
import sys
import time
from pathlib import Path

from cosmos_coherence.repository import gotext, locks
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.storage.folder import FolderBackend


def save(repository: Repository, folder: Path) -> None:
    from cosmos_coherence.repository.forked import Team
    from cosmos_coherence.repository.snapshots import Snapshot
    from cosmos_coherence.repository.tree_save import save_ancestors, save_folder

    with locks.acquire(repository, refresh=False, settle=False) as lock, Team(repository) as team:
        lock.start_refreshing()
        listed = repository.snapshots()
        before = _below(repository, listed[-1].snapshot.tree_id, folder) if listed else None
        with repository.saver() as saver:
            saved = save_folder(repository, saver, folder, parent=before, team=team)
            top = save_ancestors(saver, folder, saved.tree)
        snapshot = Snapshot(
            time=gotext.format_time(time.time_ns()),
            tree=top.hex(),
            parent=listed[-1].id if listed else None,
            paths=[str(folder)],
            hostname=socket.gethostname(),
            username="root",
            program_version="cosmos-coherence",
        )
        lock.ensure()
        repository.save_snapshot(snapshot)
    print(saved, saver.added)


def restore(repository: Repository, folder: Path) -> None:
    from cosmos_coherence.repository.tree_restore import restore_tree

    with locks.acquire(repository, refresh=False, settle=False) as lock:
        folder.mkdir()
        print(restore_tree(repository, repository.snapshots()[-1].snapshot.tree_id, folder))
        lock.ensure()


def _below(repository: Repository, tree: bytes, folder: Path) -> bytes | None:
    for step in os.fsencode(folder).strip(b"/").split(b"/"):
        node = next((node for node in repository.load_tree(tree) if node.file_name == step), None)
        if node is None or node.subtree is None:
            return None
        tree = bytes.fromhex(node.subtree)
    return tree


if __name__ == "__main__":
    what, where, folder = sys.argv[1:]
    opened = Repository.open(FolderBackend(Path(where)), os.environ["RESTIC_PASSWORD"])
    {"save": save, "restore": restore}[what](opened, Path(folder))
