"""How old the newest backup and the newest proof are."""

from __future__ import annotations

from cosmos_coherence.health.checks import CheckResult, Number, graded


def check_backup_age(newest_s: float | None, *, now_s: float, warn_s: float, fail_s: float) -> CheckResult:
    """The newest complete backup (its instant in seconds since the epoch, None when there is none) is younger than
    ``warn_s`` seconds; at ``fail_s``, or with none, it is a failure.
    """
    if newest_s is None:
        return CheckResult("backup age", "fail", "there is no complete backup")
    age = now_s - newest_s
    numbers = (Number("backup", "age_seconds", age),)
    if age < 0:
        return CheckResult("backup age", "warn", "the newest backup is dated in the future", numbers=numbers)
    return CheckResult("backup age", graded(age, warn=warn_s, fail=fail_s), f"{age / 3600:.1f} h", numbers=numbers)


def check_proof_age(proven_s: float | None, *, now_s: float, warn_s: float) -> CheckResult:
    """When a backup was last proven to restore. An old proof is a warning; that there was none yet is only said."""
    if proven_s is None:
        return CheckResult("proof age", "ok", "never")
    age = now_s - proven_s
    return CheckResult(
        "proof age",
        "warn" if age > warn_s else "ok",
        f"{age / 86400:.1f} d",
        numbers=(Number("backup", "proof_age_seconds", age),),
    )
