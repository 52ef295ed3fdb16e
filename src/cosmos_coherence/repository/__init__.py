"""The repository: encrypted, deduplicated, in restic's format version 2 (``docs/repository-format.md``).

``repository.py`` is the door. Below it, from the bytes up: ``crypto``, ``packs``, ``index``, ``trees``, ``snapshots``;
beside it ``keys``, ``config`` and ``locks``; on top ``saver``, ``check``, ``prune``, ``copying`` and ``adopt``.
Folders go in by ``tree_save`` (``folder_read`` here or in the processes of ``forked``, ``tree_seen`` for what is
unchanged) and come out by ``tree_restore`` (``restore_plan``, then ``restore_write``).
"""
