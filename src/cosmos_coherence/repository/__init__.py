"""The repository: encrypted, deduplicated, in restic's format version 2 (``docs/repository-format.md``).

``repository.py`` is the door. Below it, from the bytes up: ``crypto``, ``packs``, ``index``, ``trees``, ``snapshots``;
beside it ``keys``, ``config`` and ``locks``; on top ``saver``, ``tree_save``, ``check``, ``prune``,
``copying`` and ``adopt``.
"""
