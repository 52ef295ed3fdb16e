"""Which volumes are missing, who says so, and what makes Compose take them for its own."""

from __future__ import annotations

from pathlib import Path

from cosmos_coherence.model import Manifest, Stack, Volume, VolumeRecord
from cosmos_coherence.volumes.cache import is_cache
from cosmos_coherence.volumes.lost import lost_volumes

COMPOSE = {"com.docker.compose.project": "shop", "com.docker.compose.volume": "data"}


def stack(*volumes: Volume, runtime="docker") -> Stack:
    return Stack("shop", runtime, Path("/shop"), volumes=volumes)


def manifest(*records: VolumeRecord, project="shop") -> Manifest:
    return Manifest("20260101_000000", project, "docker", "2026-01-01T00:00:00Z", 0.0, "x", volumes=records)


def test_compose_says_driver_options_and_labels_and_gets_its_own():
    declared = Volume("shop_data", "data", "local", {"o": "size=1g"}, {"mine": "yes"}, exists=False)
    (lost,) = lost_volumes(stack(declared), manifest(VolumeRecord("shop_data", "data", "other")))
    assert lost.said_by == "compose"
    assert (lost.record.driver, lost.record.options) == ("local", {"o": "size=1g"})
    assert lost.record.labels == {"mine": "yes", **COMPOSE}


def test_what_compose_does_not_name_comes_from_the_backup_as_it_was():
    record = VolumeRecord("shop_old", "old", "local", {"a": "b"}, {**COMPOSE, "com.docker.compose.version": "2"})
    there = Volume("shop_data", "data")
    (lost,) = lost_volumes(stack(there), manifest(record, VolumeRecord("shop_data", "data")))
    assert (lost.said_by, lost.record) == ("backup", record)


def test_volumes_of_other_projects_are_passed_over():
    foreign = VolumeRecord("bank_gold", "gold", labels={"com.docker.compose.project": "bank"})
    assert lost_volumes(stack(), manifest(foreign)) == ()
    assert lost_volumes(stack(), manifest(VolumeRecord("shop_x", "x"), project="bank")) == ()
    assert lost_volumes(stack(), None) == ()


def test_caches():
    assert is_cache(Volume("shop_c", "c", labels={"cosmos.cache": "True"}), "shop")
    assert not is_cache(Volume("shop_api-cache", "api-cache"), "shop")
    assert is_cache(Volume("cosmos-coherence_api-cache", "api-cache"), "cosmos-coherence")
    assert not is_cache(Volume("cosmos-coherence_app-data", "app-data"), "cosmos-coherence")
    no = Volume("cosmos-coherence_api-cache", "api-cache", labels={"cosmos.cache": "false"})
    assert not is_cache(no, "cosmos-coherence")
