"""Each rule passes on a stack that keeps to it and fails on one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from sarif_kit.validate import validation_errors

from cosmos_coherence import errors
from cosmos_coherence.cli import sarif
from cosmos_coherence.flow.audit import Audit, profile_of
from cosmos_coherence.model import Mount, Volume
from cosmos_coherence.volumes import audit
from cosmos_coherence.volumes.audit_facts import AgeFacts, DiskFacts, Facts, ServiceFacts

DB = ServiceFacts(
    "db", "p-db", image="postgres:15", data_volume="p_db", user="postgres", process_users=frozenset({"999"}),
    read_only_root=True, log_driver="json-file", log_options={"max-size": "10m"}, image_secrets=(),
    mounts=(
        Mount("volume", "p_db", "/var/lib/postgresql/data"),
        Mount("bind", "/p/secrets/password", "/run/secrets/password"),
        Mount("bind", "/p/db.conf", "/etc/postgresql/db.conf", writable=False),
    ),
)  # fmt: skip
WEB = replace(
    DB, name="web", container="p-web", image="shop-nginx:1", data_volume="", user="101:101",
    mounts=(Mount("volume", "p_certs", "/etc/letsencrypt", writable=False),),
)  # fmt: skip
GOOD = Facts(
    profile="production",
    services=(DB, WEB),
    volumes=(Volume("p_db", "db"), Volume("p_certs", "certs")),
    modes={"p_db": 0o700, "p_certs": 0o1777},
    disk=DiskFacts("ext4 on dm-0", encrypted=True, rotational=False),
    backup=AgeFacts(3600.0, 7200.0),
    drill=AgeFacts(3600.0, 7200.0),
    engine_root="/var/lib/docker",
)


def with_db(**change) -> Facts:
    return replace(GOOD, services=(replace(DB, **change), WEB))


def with_web(*mounts: Mount, **of_db) -> Facts:
    return replace(GOOD, services=(replace(DB, **of_db), replace(WEB, mounts=mounts)))


def mounting(*mounts: Mount, **change) -> Facts:
    return with_db(mounts=(*DB.mounts, *mounts), **change)


def outcomes(facts: Facts, ignored=()) -> dict[str, str]:
    return {judged.id: judged.outcome for judged in audit.judge(facts, ignored)}


CASES = [
    ("non-root-process", with_db(process_users=frozenset({"999", "0"})), "fail"),
    ("non-root-process", with_db(process_users=None, user=""), "unknown"),
    ("non-root-user", with_db(user=""), "fail"),
    ("non-root-user", with_db(user="0:0"), "fail"),
    ("non-root-user", with_db(user="root"), "fail"),
    ("read-only-config", mounting(Mount("bind", "/p/x", "/etc/x")), "fail"),
    ("read-only-config", mounting(Mount("bind", "/p/x.toml", "/app/x.toml")), "fail"),
    ("read-only-root", with_db(read_only_root=False), "fail"),
    ("named-volumes", mounting(Mount("bind", "/p/data", "/data")), "fail"),
    ("named-volumes", mounting(Mount("volume", "f" * 64, "/tmp/x", anonymous=True)), "fail"),
    ("local-driver", replace(GOOD, volumes=(Volume("p_db", "db", driver="rexray"),)), "fail"),
    ("local-driver", replace(GOOD, volumes=(Volume("p_db", "db", options={"type": "nfs4"}),)), "fail"),
    ("log-rotation", with_db(log_options={}), "fail"),
    ("log-rotation", with_db(log_options={"max-size": "-1"}), "fail"),
    ("volume-writers", with_web(Mount("volume", "p_certs", "/certs")), "fail"),
    ("volume-writers", with_web(Mount("volume", "p_x", "/x"), mounts=(Mount("volume", "p_x", "/x"),)), "fail"),
    ("volume-users", with_web(Mount("volume", "p_db", "/x", False)), "fail"),
    ("volume-users", mounting(Mount("bind", "/", "/host", writable=False)), "fail"),
    ("volume-users", mounting(Mount("bind", "/var/lib", "/host")), "fail"),
    ("volume-users", replace(GOOD, neighbours=(replace(WEB, container="other"),)), "fail"),
    ("volume-modes", replace(GOOD, modes={"p_db": 0o777, "p_certs": 0o700}), "fail"),
    ("volume-modes", replace(GOOD, modes={}), "unknown"),
    ("engine-socket", mounting(Mount("bind", "/var/run/docker.sock", "/var/run/docker.sock")), "fail"),
    ("engine-socket", mounting(Mount("bind", "/x", "/run/containerd/containerd.sock", writable=False)), "fail"),
    ("privileged", with_db(privileged=True), "fail"),
    ("secrets-in-environment", with_db(secrets=("variable PASSWORD",)), "fail"),
    ("secrets-in-images", with_db(image_secrets=("layer 3, variable TOKEN",)), "fail"),
    ("secrets-in-images", with_db(image_secrets=None), "unknown"),
    ("encrypted-disk", replace(GOOD, disk=DiskFacts("ext4 on sda", False, False)), "fail"),
    ("encrypted-disk", replace(GOOD, disk=DiskFacts("overlay", None, False)), "unknown"),
    ("encrypted-disk", replace(GOOD, disk=None), "unknown"),
    ("ssd", replace(GOOD, disk=DiskFacts("ext4 on sda", True, True)), "fail"),
    ("ssd", replace(GOOD, disk=None), "unknown"),
    ("backup-age", replace(GOOD, backup=AgeFacts(7300.0, 7200.0)), "fail"),
    ("backup-age", replace(GOOD, backup=AgeFacts()), "fail"),
    ("backup-age", replace(GOOD, backup=AgeFacts(unknown="the repository does not answer")), "unknown"),
    ("drill-age", replace(GOOD, drill=AgeFacts()), "fail"),
]  # fmt: skip


def test_a_stack_that_keeps_to_all_of_them():
    assert set(outcomes(GOOD).values()) == {"pass"}
    assert list(outcomes(GOOD)) == [rule.id for rule in audit.RULES]


@pytest.mark.parametrize(("rule", "facts", "outcome"), CASES)
def test_a_rule_that_is_broken_and_no_other(rule, facts, outcome):
    found = outcomes(facts)
    assert found.pop(rule) == outcome
    also = {"non-root-user"} if rule == "non-root-process" and outcome == "unknown" else set()
    also |= {"named-volumes"} if rule == "volume-users" and facts.services[0].mounts[-1].source == "/var/lib" else set()
    also |= {"ssd", "encrypted-disk"} - {rule} if facts.disk is None else set()
    assert {r for r, o in found.items() if o != "pass"} == also


def test_every_rule_has_a_case():
    assert {rule for rule, _, _ in CASES} == {rule.id for rule in audit.RULES}


def test_development_is_asked_less():
    relaxed = replace(mounting(Mount("bind", "/p/src", "/app/src")), profile="development")
    found = outcomes(relaxed)
    assert "named-volumes" not in found
    assert "read-only-config" not in found
    assert set(found.values()) == {"pass"}


def test_what_is_ignored_or_accepted_is_shown():
    broken = with_db(user="", privileged=True, accepted=frozenset({"non-root-user"}), reason="it has to be")
    judged = {j.id: j for j in audit.judge(broken, ("privileged",))}
    assert judged["privileged"].outcome == "ignored"
    assert judged["privileged"].findings[0].detail
    assert judged["non-root-user"].outcome == "accepted"
    assert judged["non-root-user"].findings[0].accepted == "it has to be"
    assert not audit.failed(judged.values(), "warning")
    both = replace(broken, services=(*broken.services, replace(WEB, name="x", container="x", user="")))
    assert outcomes(both)["non-root-user"] == "fail", "what one service accepts is not accepted for another"


@pytest.mark.parametrize(("ignored", "accepted"), [(("no-rule",), ()), ((), ("no-rule",))])
def test_what_is_no_rule_cannot_be_ignored(ignored, accepted):
    with pytest.raises(errors.ConfigurationError, match="no-rule"):
        audit.judge(with_db(accepted=frozenset(accepted)), ignored)


@pytest.mark.parametrize(
    ("rule", "fail_on", "fails"),
    [("privileged", "error", True), ("read-only-root", "error", False), ("read-only-root", "warning", True),
     ("ssd", "warning", False)],
)  # fmt: skip
def test_which_rules_make_it_fail(rule, fail_on, fails):
    broken = next(facts for name, facts, outcome in CASES if name == rule and outcome == "fail")
    assert audit.failed(audit.judge(broken, ()), fail_on) == fails
    assert not audit.failed(audit.judge(broken, (rule,)), fail_on)


@pytest.mark.parametrize(
    ("files", "profile"),
    [
        (("compose.yaml", "compose.override.yaml"), "development"),
        (("compose.yaml", "compose.prod.yaml"), "production"),
        (("docker-compose.yml",), "production"),
        (("docker-compose.dev.yml",), "development"),
        (("compose.yaml", "compose.override.yaml", "production.yml"), "production"),
        (("device.yaml",), "production"),
        ((), "production"),
    ],
)
def test_the_profile_of_the_files(files, profile):
    assert profile_of([Path("/srv/dev") / name for name in files]) == profile


# ---------------------------------------------------------------------------------------------------------- SARIF
def test_the_log_is_valid_and_points_at_the_service(tmp_path):
    (tmp_path / "compose.yaml").write_text("services:\n  web:\n    image: x\n  db:\n    image: y\n")
    broken = with_db(
        user="", privileged=True, secrets=("variable \x1b\"PASSWORD'",), accepted=frozenset({"privileged"})
    )
    broken = replace(broken, disk=None, backup=AgeFacts())
    found = Audit("p", "production", ("compose.yaml",), audit.judge(broken, ("backup-age",)))
    document = json.loads(json.dumps(sarif.log(found, tmp_path)))
    assert validation_errors(document) == []
    (run,) = document["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.id for rule in audit.RULES]
    results = {result["ruleId"]: result for result in run["results"]}
    place = results["non-root-user"]["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("compose.yaml", 4)
    assert (results["non-root-user"]["kind"], results["non-root-user"]["level"]) == ("fail", "error")
    assert "suppressions" not in results["non-root-user"]
    assert results["privileged"]["suppressions"][0]["kind"] == "inSource"
    assert results["backup-age"]["suppressions"][0]["kind"] == "external"
    assert (results["encrypted-disk"]["kind"], results["encrypted-disk"]["level"]) == ("open", "none")
    assert len(run["results"]) == sum(len(judged.findings) for judged in found.rules)


def test_the_schema_refuses_what_is_wrong():
    document = sarif.log(Audit("p", "production", (), audit.judge(GOOD, ())), Path("/"))
    assert validation_errors(json.loads(json.dumps(document))) == []
    assert validation_errors({**document, "version": "3"})
