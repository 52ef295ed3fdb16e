"""From a URL to a backend, without a server."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence import errors
from cosmos_coherence.storage.folder import FolderBackend
from cosmos_coherence.storage.opened import Access, open_backend
from cosmos_coherence.storage.throttled import ThrottledBackend

SECRETS = ("very-secret-1", "very-secret-2")
ACCESS = Access(s3_key_id="AKIA", s3_secret=SECRETS[0], rest_user="who", rest_password=SECRETS[1])


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://bucket", "s3:https://s3.us-east-1.amazonaws.com/bucket"),
        ("s3://bucket/a/b/", "s3:https://s3.us-east-1.amazonaws.com/bucket/a/b"),
        ("s3:http://127.0.0.1:9/bucket/a", "s3:http://127.0.0.1:9/bucket/a"),
        ("s3:s3.example.org/bucket", "s3:https://s3.example.org/bucket"),
        ("sftp://me@host.example/a/b", "sftp://me@host.example:22/a/b"),
        ("sftp://me@host.example:2222//srv/a", "sftp://me@host.example:2222//srv/a"),
        ("sftp://me@[::1]/a%20b", "sftp://me@[::1]:22/a b"),
        ("rest:https://host.example/a", "rest:https://host.example/a/"),
        ("rest:http://who:very-secret-1@host.example:8000/a/", "rest:http://host.example:8000/a/"),
    ],
)
def test_where_it_is_and_no_secret(url: str, location: str) -> None:
    with closing(open_backend(url, ACCESS)) as backend:
        assert backend.location == location
        assert not any(secret in repr(vars(backend)) for secret in SECRETS)
        assert backend.properties.connections > 1
        assert not backend.properties.local


def test_a_path_is_a_folder(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path / "a b"))
    assert isinstance(backend, FolderBackend)
    assert backend.location == str(tmp_path / "a b")
    assert not (tmp_path / "a b").exists()
    assert isinstance(open_backend("relative", Access(upload_limit=1)), ThrottledBackend)


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "ftp://host/a",
        "b2:bucket",
        "s3://",
        "s3:///prefix",
        "s3:http:///bucket",
        "s3:https://host",
        "s3:https://very-secret-1:very-secret-2@host/bucket",
        "s3:ftp://host/bucket",
        "sftp://host/a",
        "sftp:me@host:/a",
        "sftp://me:very-secret-1@host/a",
        "sftp://me@host:port/a",
        "sftp://me@host:99999/a",
        "rest:host/a",
        "rest:https:///a",
        "rest:https://who:very-secret-1@host:x/a",
        "rest:https://who:very-secret-1@host/a?b",
        "rest:https://[host/a",
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_remedy(url: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        open_backend(url, ACCESS)
    assert "sftp://user@host/path" in caught.value.remedy
    assert not any(secret in caught.value.message for secret in SECRETS)


def test_missing_keys_and_certificates_are_named(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match="access key"):
        open_backend("s3://bucket", Access(s3_key_id="AKIA"))
    (tmp_path / "not-one").write_text("no certificate")
    for ca in (tmp_path / "none", tmp_path / "not-one"):
        with pytest.raises(errors.ConfigurationError, match="cannot be read"):
            open_backend("rest:https://host/a", Access(ca=ca))
    with pytest.raises(errors.ConfigurationError, match="cannot be read"):
        open_backend("s3://bucket", Access(s3_key_id="AKIA", s3_secret="x", ca=tmp_path / "none"))


def test_what_opens_a_store_shows_no_secret() -> None:
    assert "AKIA" in repr(ACCESS)
    assert not any(secret in repr(ACCESS) + str(ACCESS) for secret in SECRETS)


HEAVY = ("obstore", "asyncssh", "httpx")


def test_a_local_repository_needs_none_of_the_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; from cosmos_coherence.storage.opened import open_backend; "
        f"open_backend(sys.argv[1]).create(); print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "r"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    for module in [name for name in sys.modules if name.startswith("cosmos_coherence.storage.")]:
        if module.rpartition(".")[2] in ("s3", "sftp", "ssh", "rest"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", missing)
    yield


@pytest.mark.parametrize("url", ["s3://bucket", "sftp://me@host/a", "rest:https://host/a"])
@pytest.mark.usefixtures("without_the_extra")
def test_a_missing_library_is_named_with_how_to_install_it(url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="is not installed") as caught:
        open_backend(url, ACCESS)
    assert "cosmos-coherence[remote]" in caught.value.remedy
