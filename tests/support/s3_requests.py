"""Requests of S3 that no repository needs and a bucket's owner does, or a thief: signed here, sent as they are."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote
from xml.etree import ElementTree

import httpx

_DELETED = "DeleteMarker"
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True)
class Version:
    """One state of an object, or the mark that it was deleted."""

    key: str
    id: str
    deleted: bool
    latest: bool


@dataclass(frozen=True)
class Bucket:
    """A bucket in the hands of whoever has these keys."""

    endpoint: str
    name: str
    key_id: str
    secret: str

    def ask(
        self,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> httpx.Response:
        """Signed with version 4 of Amazon's signature; whatever the answer is, it is returned."""
        now = datetime.now(UTC)
        scope = f"{now:%Y%m%d}/us-east-1/s3/aws4_request"
        path = quote(f"/{self.name}/{key}" if key else f"/{self.name}")
        line = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted((query or {}).items()))
        digest = hashlib.sha256(body).hexdigest()
        said = {
            "host": self.endpoint.partition("//")[2],
            "x-amz-content-sha256": digest,
            "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}",
            **(headers or {}),
        }
        names = ";".join(sorted(said))
        request = "\n".join([method, path, line, *(f"{n}:{said[n]}" for n in sorted(said)), "", names, digest])
        to_sign = "\n".join(
            ["AWS4-HMAC-SHA256", said["x-amz-date"], scope, hashlib.sha256(request.encode()).hexdigest()]
        )
        key_bytes = f"AWS4{self.secret}".encode()
        for word in (*scope.split("/"), to_sign):
            key_bytes = hmac.digest(key_bytes, word.encode(), "sha256")
        said["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key_id}/{scope}, SignedHeaders={names}, Signature={key_bytes.hex()}"
        )
        url = f"{self.endpoint}{path}{'?' + line if line else ''}"
        return httpx.request(method, url, content=body, headers=said, trust_env=False, timeout=30)

    def create_locked(self, *, mode: str, days: int) -> None:
        """Make the bucket, with versions and object lock: what is written is kept for so many days."""
        made = self.ask("PUT", headers={"x-amz-bucket-object-lock-enabled": "true"})
        assert made.status_code == 200, made.text
        kept = self.ask("PUT", query={"object-lock": ""}, body=lock_configuration(mode, days))
        assert kept.status_code == 200, kept.text
        assert f"<Mode>{mode}</Mode>" in self.ask("GET", query={"object-lock": ""}).text
        assert "Enabled" in self.ask("GET", query={"versioning": ""}).text

    def versions(self, prefix: str = "") -> list[Version]:
        """All states of all objects."""
        found, after = [], {}
        while True:
            page = self.ask("GET", query={"versions": "", "prefix": prefix, **after})
            assert page.status_code == 200, page.text
            root = ElementTree.fromstring(page.text)
            for each in root:
                if re.sub("{.*}", "", each.tag) in ("Version", _DELETED):
                    said = {re.sub("{.*}", "", field.tag): field.text or "" for field in each}
                    marked = each.tag.endswith(_DELETED)
                    found.append(Version(said["Key"], said["VersionId"], marked, said["IsLatest"] == "true"))
            field = {re.sub("{.*}", "", each.tag): each.text or "" for each in root}
            if field.get("IsTruncated") != "true":
                return found
            after = {"key-marker": field["NextKeyMarker"], "version-id-marker": field["NextVersionIdMarker"]}


def lock_configuration(mode: str, days: int) -> bytes:
    """What a bucket is told about object lock."""
    return (
        f'<ObjectLockConfiguration xmlns="{_NAMESPACE}"><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>'
        f"<DefaultRetention><Mode>{mode}</Mode><Days>{days}</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
    ).encode()


def versioning(status: str) -> bytes:
    """What a bucket is told about versions."""
    return f'<VersioningConfiguration xmlns="{_NAMESPACE}"><Status>{status}</Status></VersioningConfiguration>'.encode()
