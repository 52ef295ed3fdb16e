"""Durable files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.storage import local


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content in (b"one", b"", os.urandom(3_000_000)):
        local.write_atomically(path, content)
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    local.write_atomically(path, b"open", mode=0o644)
    assert stat.S_IMODE(path.stat().st_mode) & ~0o044 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_content_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    local.write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.NoRoom, match="No space left"):
        local.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    for name in ("a", "b", "b"):
        (tmp_path / name).write_text(name)
        local.publish_link(tmp_path / name, latest)
        assert latest.samefile(tmp_path / name)
        assert not latest.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "latest"]


def test_without_hard_links_a_symlink_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", denied)
    (tmp_path / "a").write_text("a")
    local.publish_link(tmp_path / "a", tmp_path / "latest")
    assert (tmp_path / "latest").readlink() == Path("a")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, errors.NoRoom),
        (errno.EDQUOT, errors.NoRoom),
        (errno.EFBIG, errors.NoRoom),
        (errno.EACCES, errors.Refused),
        (errno.EPERM, errors.Refused),
        (errno.EROFS, errors.Refused),
        (errno.ENOENT, errors.NotFound),
        (errno.EIO, errors.CosmosError),
    ],
)
def test_what_the_system_says_becomes_a_sentence(code: int, kind: type[errors.CosmosError]) -> None:
    with pytest.raises(kind) as caught, local.translated("writing /a/b"):
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is kind
    assert "writing /a/b" in caught.value.message


def test_a_new_file_never_follows_or_reuses(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    for name in ("link", "link"):
        with pytest.raises(errors.CosmosError):
            local.create(tmp_path / name)
    assert not (tmp_path / "target").exists()


def test_room(tmp_path: Path) -> None:
    assert local.free_bytes(tmp_path / "not" / "there") > 0
    local.require_room(tmp_path, 1)
    with pytest.raises(errors.NoRoom, match="are needed"):
        local.require_room(tmp_path / "not", 1 << 62)


def test_a_private_folder_stays_as_it_is_when_it_exists(tmp_path: Path) -> None:
    local.make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "a" / "b").chmod(0o750)
    local.make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o750
