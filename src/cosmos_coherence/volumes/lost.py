"""Volumes of a stack that are not there, and how they have to be made again."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from cosmos_coherence.drivers.docker_facts import PROJECT, VOLUME
from cosmos_coherence.model import Manifest, Stack, VolumeRecord


class Lost(msgspec.Struct, frozen=True):
    """One volume that is missing."""

    record: VolumeRecord
    said_by: Literal["compose", "backup"]
    """Who says how it was: the stack's own files, or the newest backup."""


def lost_volumes(stack: Stack, manifest: Manifest | None) -> tuple[Lost, ...]:
    """What is missing, as the stack's own files say it, and for what they do not name, as the backup does.

    A volume that Compose would make gets the labels by which Compose knows it, so that it does not warn. What the
    backup says of volumes of another project is passed over.
    """
    there = {v.name for v in stack.volumes if v.exists}
    found = {
        v.name: Lost(_with_labels(VolumeRecord(v.name, v.short, v.driver, v.options, v.labels), stack), "compose")
        for v in stack.volumes
        if not v.exists
    }
    for record in manifest.volumes if manifest is not None and manifest.project == stack.project else ():
        if record.name not in there and record.labels.get(PROJECT, stack.project) == stack.project:
            found.setdefault(record.name, Lost(record, "backup"))
    return tuple(lost for _, lost in sorted(found.items()))


def _with_labels(record: VolumeRecord, stack: Stack) -> VolumeRecord:
    if stack.runtime != "docker":
        return record
    return replace(record, labels={**record.labels, PROJECT: stack.project, VOLUME: record.short})
