"""Which alarms there are, and what they say to whoever is woken by them."""

from __future__ import annotations

from cosmos_coherence.health.alarms import Rule
from cosmos_coherence.settings import AlarmSettings

_MARGIN = 0.05
"""A disk whose usage falls this far below the threshold has room again."""


def rules(settings: AlarmSettings) -> tuple[Rule, ...]:
    """The alarms of these settings."""
    return (*_of_disks(settings), *_of_backups(settings), *_of_services(settings))


def _of_disks(settings: AlarmSettings) -> tuple[Rule, ...]:
    return (
        Rule(
            "disk-full", ("disk:",), "used_ratio", settings.usage, settings.usage - _MARGIN,
            "the disk of {what} is {percent} full",
            "`cosmos volume usage` shows what takes the room, `cosmos forget --prune` frees what old backups take.",
            "the disk of {what} has room again, it is {percent} full",
        ),
        Rule(
            "disk-filling", ("disk:",), "days_until_full", settings.days_left, 2 * settings.days_left,
            "as it grows now, the disk of {what} is full in {number} days",
            "`cosmos volume forecast` shows what grows; make room or get a larger disk before it is full.",
            "the disk of {what} does not fill up any more, there are {number} days left",
            below=True,
        ),
        Rule(
            "inodes-full", ("disk:",), "used_inodes_ratio", settings.usage, settings.usage - _MARGIN,
            "{percent} of the inodes of the disk of {what} are used: no file can be made when they are gone",
            "`cosmos volume usage` shows the folders with the most files; an empty file takes as much as a large one.",
            "the disk of {what} has inodes again, {percent} are used",
        ),
        Rule(
            "volume-full", ("volume:",), "used_limit_ratio", settings.usage, settings.usage - _MARGIN,
            "the volume {what} holds {percent} of what its label `cosmos.limit` allows",
            "`cosmos volume usage NAME` shows what takes the room; allow more, or remove what nobody needs.",
            "the volume {what} has room again, it holds {percent} of what it may",
        ),
        Rule(
            "volume-missing", ("volume:",), "exists", 0.0, 0.5,
            "the volume {what} is not there",
            "`cosmos restore latest --only volumes/NAME` brings it back; `docker compose up -d` makes it again, empty.",
            "the volume {what} is there again",
            below=True,
        ),
    )  # fmt: skip


def _of_backups(settings: AlarmSettings) -> tuple[Rule, ...]:
    found = (
        Rule(
            "backup-overdue", ("backup",), "age_seconds", settings.backup_age, settings.backup_age,
            "the newest complete backup is {age} old",
            "`cosmos backup` makes one now and says what is in the way; `cosmos doctor` looks at what a run needs.",
            "there is a new complete backup",
        ),
        Rule(
            "backup-none", ("backup",), "complete_count", 0.0, 0.0,
            "there is no complete backup",
            "`cosmos backup` makes one now and says what is in the way.",
            "there is a complete backup",
            below=True, raise_after=settings.backup_age,
        ),
        Rule(
            "run-failed", ("run:",), "exit_status", 1.0, 1.0,
            "the {what} did not go well (exit status {number})",
            "`cosmos doctor` looks at what a run needs, `cosmos backup` makes one now and says what is in the way.",
            "the {what} went well again",
        ),
    )  # fmt: skip
    if not settings.proof_age:
        return found
    return (
        *found,
        Rule(
            "proof-overdue", ("backup",), "proof_age_seconds", settings.proof_age, settings.proof_age,
            "it was {age} ago that a backup was last proven to restore",
            "`cosmos restore latest --to DIR` restores one beside the stack.",
            "a backup was proven to restore",
        ),
    )  # fmt: skip


def _of_services(settings: AlarmSettings) -> tuple[Rule, ...]:
    # `ok` is 1 when all is well, 0 when it is not, and between the two for a warning
    return (
        Rule(
            "service-unhealthy", ("check:service ", "service:"), "ok", 0.0, 0.4,
            "{what} is not well",
            "`cosmos health` shows all checks; `docker compose logs SERVICE --tail=50` shows why.",
            "{what} is well again",
            below=True, raise_after=120.0, clear_after=120.0,
        ),
        Rule(
            "check-failed", ("check:",), "ok", 0.0, 0.4,
            "the check `{what}` fails",
            "`cosmos health` shows all checks, `cosmos doctor` what a run needs.",
            "the check `{what}` is well again",
            below=True, raise_after=300.0,
            # these have rules of their own
            besides=("check:service ", "check:disk", "check:volume ", "check:backup", "check:proof",
                     "check:certificate", "check:notifier"),
        ),
        Rule(
            "certificate", ("certificate:",), "days_left", settings.certificate_days, settings.certificate_days * 1.25,
            "the certificate of {what} is good for {number} days only",
            "`docker compose logs certbot --tail=50` shows why it was not renewed.",
            "the certificate of {what} was renewed, it is good for {number} days",
            below=True,
        ),
        Rule(
            "notifier-failing", ("notifier:",), "failing_seconds", 3600.0, 1.0,
            "the notifier {what} has not taken a message for {age}",
            "`cosmos alarms test` tries every notifier and says which do not answer.",
            "the notifier {what} takes messages again",
        ),
    )  # fmt: skip
