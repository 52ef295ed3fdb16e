"""A host that was broken into, and a bucket with versions and object lock: the past is there all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from support import backend_servers as servers
from support.program import SOURCE, cosmos
from support.s3_requests import Bucket, lock_configuration, versioning
from support.trees import looks, odd_tree

DOCUMENT = Path(__file__).parents[2] / "docs" / "repository.md"
NOWHERE = "unix:///nowhere/docker.sock"


def told(folder: Path, environment: Mapping[str, str], *arguments: str, status: int = 0):
    ended = cosmos("-C", str(folder), *arguments, "--json", DOCKER_HOST=NOWHERE, **environment)
    assert ended.returncode == status, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def rescue() -> str:
    """The lines of the manual."""
    text = DOCUMENT.read_text().split("<!-- rescue -->")[1]
    return text.split("```bash\n")[1].split("```")[0]


def past_this_second() -> str:
    """This moment, as a person writes it, when it is safely over: a store tells times in whole seconds."""
    moment = int(time.time()) + 1
    time.sleep(moment + 1 - time.time())
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_thief_with_the_hosts_keys_destroys_nothing(tmp_path: Path) -> None:
    folder, tree = tmp_path / "papers", tmp_path / "srv"
    (folder / "secrets").mkdir(parents=True, mode=0o700)
    odd_tree(tree)
    (folder / "cosmos.toml").write_text(f'[[source]]\nkind = "files"\nname = "srv"\npath = "{tree}"\n')
    (folder / "secrets" / "s3").write_text(servers.SECRET)
    with servers.seaweedfs(owner=True) as s3:
        owner = Bucket(s3.endpoint, servers.LOCKED, servers.OWNER_ID, servers.OWNER_SECRET)
        host = Bucket(s3.endpoint, servers.LOCKED, servers.KEY_ID, servers.SECRET)
        owner.create_locked(mode="GOVERNANCE", days=30)
        there = {
            "COSMOS_REPOSITORY__URL": f"s3://{servers.LOCKED}/stacks",
            "COSMOS_REPOSITORY__S3_ENDPOINT": s3.endpoint,
            "COSMOS_REPOSITORY__S3_KEY_ID": servers.KEY_ID,
            "COSMOS_REPOSITORY__S3_SECRET_FILE": "secrets/s3",
        }
        told(folder, there, "init", "--kit", str(tmp_path / "kit"))
        saved, states = [], []
        for number in range(2):
            (tree / "changing").write_bytes(os.urandom(300_000))
            states.append(looks(tree))
            saved.append(told(folder, there, "backup")["backup"])
            assert len(saved) == number + 1
        locks = owner.versions("stacks/locks/")
        assert {one.deleted for one in locks} == {True, False}, "locks come and go as ever"
        assert {one.deleted for one in locks if one.latest} == {True}, "none is left"
        for one in host.versions():
            if one.latest and not one.deleted:  # without it, Amazon's own store takes nothing into such a bucket
                looked = host.ask("HEAD", one.key, headers={"x-amz-checksum-mode": "ENABLED"})
                assert "x-amz-checksum-sha256" in looked.headers, one.key
        moment = past_this_second()

        rob(host)
        oldest = owner.versions("stacks/config")[-1]
        refused = owner.ask("DELETE", oldest.key, query={"versionId": oldest.id})
        assert refused.status_code == 403, "for its time, the lock holds against a key that may do everything, too"
        assert told(folder, there, "list", status=4)["failure"]["code"] == "not-found"
        (tree / "changing").write_text("what the thief left")

        rescue_it(folder, s3, moment, there, saved[0])
        assert looks(tree) == states[0]
        after = told(folder, there, "backup")
        assert after["size"] < 100_000, "it goes on where it was"
        assert [one["id"] for one in told(folder, there, "list") if not one["safety"]] == [*saved, after["backup"]]
        assert told(folder, there, "check", "--read-data", "all")["checked"] is True
        told(folder, there, "restore", saved[1], "--yes")
        assert looks(tree) == states[1]


def rob(host: Bucket) -> None:
    """All that can be done with the keys of the host: overwritten, deleted, and every try at what is older refused."""
    before = host.versions()
    keys = sorted({one.key for one in before if one.latest and not one.deleted})
    assert len(keys) > 8
    for number, key in enumerate(keys):
        if number % 2:
            assert host.ask("PUT", key, body=b"x" * 100).status_code == 200
        if number % 3:
            assert host.ask("DELETE", key).status_code == 204
    host.ask("PUT", "stacks/snapshots/" + "0" * 64, body=b"junk")
    kept = {(one.key, one.id) for one in before if not one.deleted}
    for key, version in kept:
        for headers in ({}, {"x-amz-bypass-governance-retention": "true"}):
            refused = host.ask("DELETE", key, query={"versionId": version}, headers=headers)
            assert refused.status_code == 403, (key, refused.text)
    for query, body in (
        ({"object-lock": ""}, lock_configuration("GOVERNANCE", 1)),
        ({"versioning": ""}, versioning("Suspended")),
    ):
        assert host.ask("PUT", query=query, body=body).status_code in (403, 409)
    assert host.ask("DELETE").status_code in (403, 409)
    config = "stacks/config"
    assert host.ask("DELETE", config).status_code == 204
    assert kept <= {(one.key, one.id) for one in host.versions()}


def rescue_it(folder: Path, s3: servers.S3, moment: str, there: Mapping[str, str], backup: str) -> None:
    """As the manual says it, with another key than the host's."""
    configuration = folder.parent / "rclone.conf"
    configuration.write_text(
        f"[store]\ntype = s3\nprovider = SeaweedFS\nendpoint = {s3.endpoint}\n"
        f"access_key_id = {servers.OWNER_ID}\nsecret_access_key = {servers.OWNER_SECRET}\n"
    )
    lines = rescue()
    for said, meant in (
        ("2026-11-20T03:00:00Z", moment), ("bucket/stacks", f"{servers.LOCKED}/stacks"), ("20261120_020000", backup),
    ):  # fmt: skip
        assert said in lines
        lines = lines.replace(said, meant)
    ended = subprocess.run(
        ["bash", "-euc", lines], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, **there, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
             "PYTHONPATH": str(SOURCE), "RCLONE_CONFIG": str(configuration), "DOCKER_HOST": NOWHERE},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
