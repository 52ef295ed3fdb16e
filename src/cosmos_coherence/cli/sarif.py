"""The audit as a SARIF 2.1.0 log, which code review reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cosmos_coherence
from cosmos_coherence.flow.audit import Audit
from cosmos_coherence.volumes.audit import Judged
from cosmos_coherence.volumes.audit_looks import Finding

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def log(found: Audit, directory: Path) -> dict[str, Any]:
    """The whole log. Every finding points at the line of its service in the Compose files below ``directory``; what is
    accepted or ignored is there as suppressed, what cannot be seen as open."""
    rules = [_rule(rule) for rule in found.rules]
    results = [
        _result(rule, number, finding, found, directory)
        for number, rule in enumerate(found.rules)
        for finding in rule.findings
    ]
    driver = {"name": "cosmos audit", "version": cosmos_coherence.__version__, "rules": rules}
    run = {
        "tool": {"driver": driver},
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": {"project": found.project, "profile": found.profile},
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Judged) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.id.split("-")),
        "shortDescription": {"text": f"{rule.title}."},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"guide": rule.guide, "outcome": rule.outcome},
    }


def _result(rule: Judged, number: int, finding: Finding, found: Audit, directory: Path) -> dict[str, Any]:
    file, line = _place(finding, found, directory)
    physical = {"artifactLocation": {"uri": quote(file)}, "region": {"startLine": line}}
    return {
        "ruleId": rule.id,
        "ruleIndex": number,
        "kind": "fail" if finding.known else "open",
        "level": rule.severity if finding.known else "none",
        "message": {"text": f"{finding.subject}: {finding.detail}. {rule.remedy}"},
        "locations": [
            {"physicalLocation": physical, "logicalLocations": [{"fullyQualifiedName": finding.subject}]},
        ],
        "partialFingerprints": {"finding/v1": f"{rule.id}/{finding.subject}/{finding.detail}"},
        **({"suppressions": list(_suppressions(rule, finding))} if _left(rule, finding) else {}),
    }


def _left(rule: Judged, finding: Finding) -> bool:
    return bool(finding.accepted) or rule.outcome == "ignored"


def _suppressions(rule: Judged, finding: Finding) -> Iterator[dict[str, str]]:
    if finding.accepted:
        yield {"kind": "inSource", "status": "accepted", "justification": finding.accepted}
    if rule.outcome == "ignored":
        yield {"kind": "external", "status": "accepted", "justification": "setting audit.ignore"}


def _place(finding: Finding, found: Audit, directory: Path) -> tuple[str, int]:
    """The last Compose file that says something of the service, and the line where it begins to."""
    first = found.config_files[0] if found.config_files else "compose.yaml"
    kind, _, name = finding.subject.partition(" ")
    if kind == "service":
        for file in reversed(found.config_files):
            if line := _line(directory / file, name):
                return file, line
    return first, 1


def _line(file: Path, service: str) -> int:
    try:
        lines = file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return 0
    begins = re.compile(rf"""\s+["']?{re.escape(service)}["']?\s*:""")
    return next((number for number, line in enumerate(lines, 1) if begins.match(line)), 0)
