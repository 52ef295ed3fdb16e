from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.discover.coverage import Looks, cover
from cosmos_coherence.model import Mount, Service, Stack, Volume


def stack_of(tmp_path, *, services, volumes=()):
    return Stack("shop", "docker", tmp_path, services=tuple(services), volumes=tuple(volumes))


def looks(*, holds=None, tracked=()):
    known = holds or {}
    return Looks(
        holds=lambda path: known.get(path, ""),
        size=lambda _: 7,
        tracked=lambda path: path in {Path(t) for t in tracked},
    )


def covered(stack, **options):
    return cover(stack, (), looks(**options), backups=(stack.directory / "backups",))


def test_engines_are_captured_through_themselves_and_never_as_files(tmp_path):
    stack = stack_of(
        tmp_path,
        services=[
            Service("db", "db", image="postgres:15", mounts=(Mount("volume", "shop_pg", "/var/lib/postgresql/data"),)),
            Service("cache", "cache", image="valkey/valkey:8", mounts=(Mount("volume", "shop_kv", "/data"),)),
            Service("app", "app", image="shop:1", mounts=(Mount("volume", "shop_up", "/uploads"),)),
        ],
        volumes=[Volume(f"shop_{n}", n, path=tmp_path / n) for n in ("pg", "kv", "up")],
    )
    assert [s.part for s in covered(stack).sources] == ["postgres/db", "redis/cache", "volumes/up", "config"]


def test_an_unknown_image_is_known_by_its_data(tmp_path):
    volume = Volume("shop_pg", "pg", path=tmp_path / "pg")
    mounts = (Mount("volume", "shop_pg", "/var/lib/postgresql/data"),)
    stack = stack_of(tmp_path, services=[Service("db", "db", image="ours:1", mounts=mounts)], volumes=[volume])
    assert covered(stack, holds={tmp_path / "pg": "postgres"}).sources[0].part == "postgres/db"


def test_a_label_overrules_the_image(tmp_path):
    service = Service("db", "db", image="postgres:15", labels={"cosmos.kind": "none"})
    assert [s.kind for s in covered(stack_of(tmp_path, services=[service])).sources] == ["config"]
    wrong = Service("db", "db", labels={"cosmos.kind": "oracle"})
    with pytest.raises(errors.ConfigurationError, match="oracle"):
        covered(stack_of(tmp_path, services=[wrong]))


def test_a_running_database_that_was_not_recognised_is_a_gap_and_not_a_tar(tmp_path):
    volume = Volume("shop_pg", "pg", path=tmp_path / "pg")
    service = Service("odd", "odd", image="odd:1", mounts=(Mount("volume", "shop_pg", "/somewhere/else"),))
    found = covered(stack_of(tmp_path, services=[service], volumes=[volume]), holds={tmp_path / "pg": "postgres"})
    assert [g.what for g in found.gaps if not g.chosen] == ["volume shop_pg"]
    assert "volumes/pg" not in [s.part for s in found.sources]


def test_volumes_that_cannot_be_reached_or_are_left_out(tmp_path):
    stack = stack_of(
        tmp_path,
        services=[],
        volumes=[
            Volume("shop_far", "far", driver="nfs"),
            Volume("shop_tmp", "tmp", labels={"cosmos.exclude": "true"}, path=tmp_path),
            Volume("shop_part", "part", labels={"cosmos.exclude": "cache/*, *.tmp"}, path=tmp_path),
            Volume("shop_cosmos-state", "cosmos-state", path=tmp_path),
            Volume("shop_lost", "lost", exists=False),
        ],
    )
    found = covered(stack)
    assert {(g.what, g.chosen) for g in found.gaps} == {
        ("volume shop_far", False),
        ("volume shop_tmp", True),
        ("volume shop_cosmos-state", True),
    }
    assert {s.part: s.exclude for s in found.sources}["volumes/part"] == ("cache/*", "*.tmp")


@pytest.mark.parametrize("pattern", ["/etc", "../other", "a/../../b"])
def test_an_exclude_that_leaves_the_volume_is_refused(tmp_path, pattern):
    volume = Volume("shop_x", "x", labels={"cosmos.exclude": pattern}, path=tmp_path)
    with pytest.raises(errors.ConfigurationError):
        covered(stack_of(tmp_path, services=[], volumes=[volume]))


def test_bind_mounts(tmp_path):
    for name in ("data", "src", "backups"):
        (tmp_path / name).mkdir()
    mounts = tuple(
        Mount("bind", str(path), f"/in{number}", writable=writable)
        for number, (path, writable) in enumerate(
            [
                (tmp_path / "data", True),
                (tmp_path / "src", True),
                (tmp_path / "backups", True),
                (tmp_path / "settings", False),
                (Path("/srv/elsewhere"), True),
                (Path("/srv/wanted"), True),
            ]
        )
    )
    service = Service("app", "app", mounts=mounts, labels={"cosmos.include": "/in5"})
    found = covered(stack_of(tmp_path, services=[service]), tracked=[tmp_path / "src"])
    assert [s.part for s in found.sources] == ["files/data", "files/srv-wanted", "config"]
    assert [g.what for g in found.gaps if not g.chosen] == ["bind mount /srv/elsewhere of app"]


def test_anonymous_volumes_with_data_are_named(tmp_path):
    name = "ab" * 32
    mount = Mount("volume", name, "/scratch", anonymous=True)
    stack = stack_of(
        tmp_path, services=[Service("app", "app", mounts=(mount,))], volumes=[Volume(name, name, path=tmp_path)]
    )
    (gap,) = covered(stack).gaps
    assert gap.what == "anonymous volume of app at /scratch"
    assert gap.size == 7
    assert not gap.chosen


def test_choosing_parts(tmp_path):
    stack = stack_of(tmp_path, services=[], volumes=[Volume("shop_x", "x", path=tmp_path)])
    found = covered(stack)
    assert [s.part for s in found.only(["x"])] == ["volumes/x"]
    assert [s.part for s in found.only(["volumes", "config"])] == ["volumes/x", "config"]
    with pytest.raises(errors.NotFound, match="nothing"):
        found.only(["nothing"])
