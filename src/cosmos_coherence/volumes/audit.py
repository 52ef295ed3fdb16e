"""The guide's best practices as rules: one table of pure functions over facts, each with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.volumes import audit_looks as looks
from cosmos_coherence.volumes.audit_facts import Facts, Profile
from cosmos_coherence.volumes.audit_looks import Finding

Severity = Literal["note", "warning", "error"]
Outcome = Literal["pass", "fail", "unknown", "accepted", "ignored"]

SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")


class Rule(msgspec.Struct, frozen=True):
    """One best practice. ``severity`` by profile; where a profile is missing, the rule does not apply to it."""

    id: str
    title: str
    severity: Mapping[Profile, Severity]
    remedy: str
    guide: str
    """The section of the guide that asks for it."""
    look: Callable[[Facts], Iterable[Finding]]


class Judged(msgspec.Struct, frozen=True):
    """What came of one rule."""

    id: str
    title: str
    severity: Severity
    outcome: Outcome
    remedy: str
    guide: str
    findings: tuple[Finding, ...] = ()
    """What is wrong, what could not be seen (``known`` is false), and what its owner accepts (``accepted``)."""


def judge(facts: Facts, ignored: Collection[str]) -> tuple[Judged, ...]:
    """Every rule of the profile. ``ConfigurationError`` when something ignored or accepted is no rule."""
    _require_rules(ignored, "setting audit.ignore")
    for service in facts.services:
        _require_rules(service.accepted, f"label cosmos.audit.accept of service {service.name}")
    return tuple(_judged(rule, facts, ignored) for rule in RULES if facts.profile in rule.severity)


def failed(judged: Iterable[Judged], fail_on: Severity) -> bool:
    """Whether a rule of at least that severity failed."""
    least = SEVERITIES.index(fail_on)
    return any(j.outcome == "fail" and SEVERITIES.index(j.severity) >= least for j in judged)


def _judged(rule: Rule, facts: Facts, ignored: Collection[str]) -> Judged:
    accepted = {s.container: s.reason or "accepted" for s in facts.services if rule.id in s.accepted}
    found = tuple(f.accept(accepted[f.container]) if f.container in accepted else f for f in rule.look(facts))
    open_ = [f for f in found if not f.accepted]
    outcome: Outcome = "pass"
    if any(f.known for f in open_):
        outcome = "ignored" if rule.id in ignored else "fail"
    elif open_:
        outcome = "unknown"
    elif found:
        outcome = "accepted"
    return Judged(rule.id, rule.title, rule.severity[facts.profile], outcome, rule.remedy, rule.guide, found)


def _require_rules(ids: Collection[str], where: str) -> None:
    unknown = sorted(set(ids) - {rule.id for rule in RULES})
    if unknown:
        raise errors.ConfigurationError(
            f"{where} names what is no rule: {', '.join(unknown)[:200]!a}", remedy="`docs/audit.md` lists the rules."
        )


def _both(production: Severity, development: Severity) -> Mapping[Profile, Severity]:
    return {"production": production, "development": development}


def _production(severity: Severity) -> Mapping[Profile, Severity]:
    return {"production": severity}


def _rules() -> Iterator[Rule]:
    security, performance, backups = "Volume Security", "Performance Optimization", "Regular Backups"
    yield Rule(
        "non-root-process", "No process of a service is root", _both("error", "warning"),
        "Set `user:` in the Compose file, or let the entrypoint give up root before it serves.",
        security, looks.root_processes,
    )  # fmt: skip
    yield Rule(
        "non-root-user", "No service is started as root", _production("error"),
        "Set `user:` in the Compose file, or `USER` in the image; give the volume's files to that user.",
        security, looks.root_users,
    )  # fmt: skip
    yield Rule(
        "read-only-config", "Configuration is mounted read-only", _production("error"),
        "Add `:ro` to the mount, or put the file into the image.",
        "Production", looks.writable_configuration,
    )  # fmt: skip
    yield Rule(
        "read-only-root", "A service can write to its volumes only", _production("warning"),
        "Set `read_only: true` and `tmpfs: [/tmp]`.",
        "Production", looks.writable_roots,
    )  # fmt: skip
    yield Rule(
        "named-volumes", "Data lie in named volumes, in no bind mount and no anonymous volume", _production("error"),
        "Declare a volume under `volumes:` and mount it by its name.",
        "Production", looks.other_mounts,
    )  # fmt: skip
    yield Rule(
        "local-driver", "Volumes use the local driver, on a disk of this machine", _both("warning", "warning"),
        "Declare the volume without `driver` and `driver_opts`, and copy its content over.",
        performance, looks.foreign_drivers,
    )  # fmt: skip
    yield Rule(
        "log-rotation", "Logs are rotated", _both("error", "warning"),
        "Set `logging: {driver: json-file, options: {max-size: 10m, max-file: \"3\"}}`, or the driver `local`.",
        performance, looks.endless_logs,
    )  # fmt: skip
    yield Rule(
        "volume-writers", "A volume is writable for the one service that writes to it", _both("warning", "note"),
        "Add `:ro` to the mount of every service that only reads.",
        security, looks.many_writers,
    )  # fmt: skip
    yield Rule(
        "volume-users", "Nobody mounts what belongs to another service", _both("error", "warning"),
        "Take the mount away; ask the database instead of its files.",
        security, looks.needless_mounts,
    )  # fmt: skip
    yield Rule(
        "volume-modes", "The files of a volume are not writable for everybody", _both("warning", "note"),
        "Take the right away: `chmod o-w`, and give the folder to the user of its service.",
        security, looks.open_volumes,
    )  # fmt: skip
    yield Rule(
        "engine-socket", "No service holds the engine's socket", _both("error", "warning"),
        "Take the mount away: whoever has the socket can read and write every volume and is root on the host.",
        security, looks.engine_sockets,
    )  # fmt: skip
    yield Rule(
        "privileged", "No service is privileged", _both("error", "warning"),
        "Replace `privileged: true` and SYS_ADMIN by the few capabilities that are needed.",
        security, looks.privileged,
    )  # fmt: skip
    yield Rule(
        "secrets-in-environment", "No secret stands in the environment of a service", _both("error", "warning"),
        "Give it as a Compose secret and name its file, as in `POSTGRES_PASSWORD_FILE`.",
        security, looks.secrets_in_environments,
    )  # fmt: skip
    yield Rule(
        "secrets-in-images", "No secret is part of an image", _both("error", "error"),
        "Take it out of ENV, ARG and labels, build again (`RUN --mount=type=secret`), and change the secret: "
        "whoever has the image has it.",
        security, looks.secrets_in_images,
    )  # fmt: skip
    yield Rule(
        "encrypted-disk", "The engine's data are encrypted at rest", _both("warning", "note"),
        "Put the engine's root on a LUKS volume; where the provider encrypts the disk, ignore this rule.",
        security, looks.plain_disk,
    )  # fmt: skip
    yield Rule(
        "backup-age", "There is a complete backup, and it is young enough", _both("error", "note"),
        "Run `cosmos backup`, and let the agent or cron do it from now on; `health.backup_fail` is the limit.",
        backups, looks.old_backup,
    )  # fmt: skip
    yield Rule(
        "drill-age", "A backup was restored in a drill not long ago", _both("warning", "note"),
        "Restore a backup on another machine and look at it.",
        backups, looks.old_drill,
    )  # fmt: skip
    yield Rule(
        "ssd", "Volumes lie on an SSD", _both("note", "note"),
        "Move the engine's root (`data-root` in daemon.json) to an SSD.",
        performance, looks.rotating_disk,
    )  # fmt: skip


RULES: tuple[Rule, ...] = tuple(_rules())
"""All of them, in the order in which they are shown."""
