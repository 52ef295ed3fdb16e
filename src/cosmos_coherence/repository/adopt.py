"""Before a run adds anything: the index is made to say what is really stored.

Packs that a killed run had uploaded and not yet put into an index are indexed, so that the next one goes on from them.
Packs that are gone count as not stored, so that nothing new is built on them and what was in them is stored again.
"""

from __future__ import annotations

from cosmos_coherence import errors
from cosmos_coherence.repository import packs
from cosmos_coherence.repository.index import PackBlobs
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import INDEX_BLOBS


def adopt(repository: Repository) -> int:
    """Index every stored pack that is in no index, by its header; how many there were. Leave out those that are gone.

    Lists all packs, so it is for after a run that did not end. The caller holds a shared lock: no prune may be under
    way. Another host's packs that are about to be indexed may be taken too, which does no harm. A pack whose header
    cannot be read is left alone. Raises the backend's errors.
    """
    repository.refresh_index()
    backend, sealer = repository.backend, repository.envelope().sealer
    listed = list(backend.list("data"))
    repository.leave_out(set(repository.index.packs()) - {bytes.fromhex(stored.name) for stored in listed})
    index = repository.index
    found: list[PackBlobs] = []
    adopted = blobs = 0
    for stored in listed:
        pack = bytes.fromhex(stored.name)
        if index.has_pack(pack):
            continue
        try:
            found.append((pack, packs.read_header(backend, pack, stored.size, sealer)))
        except (errors.Damaged, errors.NotFound):
            continue
        adopted += 1
        blobs += len(found[-1][1])
        if blobs >= INDEX_BLOBS:
            _save(repository, found)
            found, blobs = [], 0
    _save(repository, found)
    return adopted


def _save(repository: Repository, found: list[PackBlobs]) -> None:
    if not found:
        return
    repository.save_index(found)
    for pack, blobs in found:
        repository.index.add(pack, blobs)
