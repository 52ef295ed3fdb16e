"""Certificates as certbot lays them out, as servers show them, and as somebody would who means harm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence.health import certificates
from cosmos_coherence.health.certificates import Patience
from cosmos_coherence.health.endpoints import Endpoint
from cosmos_coherence.model import Volume
from support.answering import answering, certificate, says

PATIENCE = Patience()


def lay_out(root: Path, name: str, pem: bytes, *, version: int = 1) -> None:
    """As certbot does: the files in ``archive``, links in ``live``."""
    for folder in (root / "archive" / name, root / "live" / name):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "archive" / name / f"fullchain{version}.pem").write_bytes(pem)
    link = root / "live" / name / "fullchain.pem"
    link.unlink(missing_ok=True)
    link.symlink_to(f"../../archive/{name}/fullchain{version}.pem")


def check(root: Path | None):
    return certificates.check_volume(Volume("p_certs", "certs", path=root), PATIENCE, now_s=time.time())


@pytest.mark.parametrize(
    ("days", "begun", "outcome", "detail"),
    [(58, 30, "ok", "58.0 days left"), (20, 70, "warn", "20.0 days left"), (2, 88, "fail", "2.0 days left"),
     (-4, 90, "fail", "ended 4.0 days ago"), (90, -2, "fail", "is not valid yet")],
)  # fmt: skip
def test_what_is_left(tmp_path, days, begun, outcome, detail):
    pem, key = certificate(days, begun=begun)
    lay_out(tmp_path, "shop.example.org", pem)
    found = check(tmp_path)
    assert (found.outcome, found.detail) == (outcome, detail)
    (number,) = found.numbers
    assert (number.subject, number.name) == ("certificate:certs/shop.example.org", "days_left")
    assert number.value == pytest.approx(days, abs=0.1)

    both = tmp_path / "both.pem"
    both.write_bytes(pem + key)
    with answering(says("200 OK"), pem=both) as port:
        endpoint = Endpoint(f"https://127.0.0.1:{port}/", (("127.0.0.1", port),))
        shown = certificates.check_served(endpoint, PATIENCE, now_s=time.time(), limit_s=30.0)
    assert (shown.outcome, shown.detail) == (outcome, detail)
    assert shown.numbers[0].subject == f"certificate:127.0.0.1:{port}"


def test_the_renewed_one_counts_and_the_worst_is_the_whole(tmp_path):
    lay_out(tmp_path, "a", certificate(-1)[0])
    lay_out(tmp_path, "a", certificate(80)[0], version=2)
    lay_out(tmp_path, "b", certificate(10)[0])
    found = check(tmp_path)
    assert (found.outcome, found.detail) == ("warn", "b 10.0 days left, a 80.0 days left")


def test_a_volume_without_certificates_has_no_such_check(tmp_path):
    assert check(None) is None
    assert check(tmp_path / "gone") is None
    assert check(tmp_path) is None
    (tmp_path / "live").mkdir()
    assert check(tmp_path) is None


def test_no_link_leads_out(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "volume"
    (outside / "x").mkdir(parents=True)
    (outside / "fullchain.pem").write_bytes(certificate(58)[0])
    (root / "live" / "x").mkdir(parents=True)
    (root / "live" / "x" / "fullchain.pem").symlink_to(outside / "fullchain.pem")
    assert check(root).detail == "has no certificate"
    (root / "live" / "x" / "fullchain.pem").unlink()
    (root / "live" / "x" / "fullchain.pem").symlink_to("../../archive/x/fullchain1.pem")
    (root / "archive").mkdir()
    (root / "archive" / "x").symlink_to(outside)
    (outside / "fullchain1.pem").write_bytes(certificate(58)[0])
    assert check(root).detail == "has no certificate"
    (root / "archive" / "x").unlink()
    (root / "archive" / "x").mkdir()
    os.mkfifo(root / "archive" / "x" / "fullchain1.pem")
    assert check(root).detail == "has no certificate"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "live").symlink_to(root / "live")
    assert check(elsewhere) is None


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda b: b"-----BEGIN CERTIFICATE-----\n" + b))
def test_bytes_that_are_no_certificate_are_a_finding(data):
    outcome, _, days = certificates._judged(data, PATIENCE, time.time())
    assert (outcome, days) == ("fail", None)


@given(st.integers(0, 500), st.integers(0, 255))
def test_a_broken_certificate_is_read_or_is_a_finding(place, byte):
    pem = bytearray(BROKEN)
    pem[place % len(pem)] = byte
    assert certificates._judged(bytes(pem), PATIENCE, time.time())[0] in ("ok", "warn", "fail")


BROKEN = certificate(58)[0]


def test_a_server_without_tls_shows_none():
    with answering(says("200 OK")) as port:
        endpoint = Endpoint(f"https://127.0.0.1:{port}/", (("127.0.0.1", port),))
        assert certificates.check_served(endpoint, PATIENCE, now_s=time.time(), limit_s=30.0).outcome == "fail"
