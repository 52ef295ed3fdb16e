"""The repository: encrypted, deduplicated, in restic's format version 2 (``docs/repository-format.md``).

``repository.py`` is the door. Below it, from the bytes up: ``crypto``, ``packs``, ``index``, ``trees``, ``snapshots``;
beside it ``keys``, ``config`` and ``locks``; on top ``saver``, ``check``, ``prune``, ``copying`` and ``adopt``.
A backup goes in by ``writer``, its file trees by ``tree_writer`` (``small_files`` here or in the processes of
``forked``, ``tree_before`` and ``tree_cache`` for what is unchanged); it comes out by ``reader`` and ``tree_restore``
(``restore_plan``, then ``restore_write``).
"""
