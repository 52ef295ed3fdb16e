"""What the pages say is there, is there; what is there, the pages say."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from cosmos_coherence import errors
from cosmos_coherence.cli.main import app
from cosmos_coherence.volumes import audit

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(app)
VERBS = COMMAND.commands
SCRIPTS = {"backup.sh": "backup", "restore.sh": "restore", "health-check.sh": "health"}


def options(command) -> set[str]:
    own = {name for param in command.params for name in getattr(param, "opts", []) if name.startswith("-")}
    below = getattr(command, "commands", {}).values() if command is not COMMAND else ()
    return own.union(*map(options, below), {"--help", "-h"})


def calls(page: Path) -> list[list[str]]:
    """The words of every line of a block that calls us: in shells' blocks, in cron lines, behind ``sudo``."""
    found = []
    for block in re.findall(r"^```(?:bash|sh|)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for line in block.splitlines():
            if called := re.search(r"(?:^\$? *(?:sudo )?|&& )((?:cosmos|make|\./scripts/\S+)(?: .*)?)$", line):
                words = shlex.split(re.sub(r"\d?>>?\S+( 2>&1)?", "", called[1]), comments=True)
                found.append(words)
    return found


CALLS = [pytest.param(words, id=f"{page.name}: {' '.join(words)}") for page in PAGES for words in calls(page)]


def test_the_pages_call_us():
    assert len(CALLS) > 10


@pytest.mark.parametrize("words", CALLS)
def test_what_the_pages_call_is_there(words):
    program, *arguments = words
    if program == "make":
        assert shutil.which("make")
        done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return
    if program.startswith("./"):
        script = ROOT / program
        assert script.is_file()
        assert script.stat().st_mode & 0o111
        arguments = [SCRIPTS[script.name], *arguments]
    given = [a.partition("=")[0] for a in arguments]
    known = options(COMMAND)
    verb = next((a for a in given if a in VERBS), None)
    assert verb or not [a for a in given if not a.startswith("-")], f"no verb in {words}"
    if verb:
        known |= options(VERBS[verb])
    assert {a for a in given if a.startswith("-")} <= known


def test_every_verb_is_told():
    pages = "\n".join(page.read_text("utf-8") for page in PAGES)
    scripts = {verb for name, verb in SCRIPTS.items() if f"scripts/{name}" in pages}
    told = {verb for verb in VERBS if re.search(rf"cosmos (-C \S+ )?{verb}\b|`{verb}\b", pages)}
    assert set(VERBS) == told | scripts


def test_every_page_that_is_named_is_there():
    named = {
        (page.name, path)
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
        for path in re.findall(r"`((?:docs|scripts|tests|src|changes|docker)/[\w./-]+)`", page.read_text("utf-8"))
    }
    assert [(page, path) for page, path in sorted(named) if not (ROOT / path).exists()] == []


def test_remedies_name_verbs_that_are_there():
    remedies = " ".join(
        text for path in (ROOT / "src").rglob("*.py") for text in re.findall(r"`cosmos ([a-z]+)", path.read_text())
    )
    assert set(remedies.split()) <= set(VERBS)


# --------------------------------------------------------------------------------------------------------- errors
def errors_page() -> str:
    """``docs/errors.md`` as the catalogue says it."""
    rows = [
        f"| `{kind.code}` | {kind.exit_status} | {kind.http_status} | {'yes' if kind.retryable else ''} "
        f"| {' '.join((kind.__doc__ or '').split('. ')[0].split()).rstrip('.')} | {kind.default_remedy} |"
        for kind in errors.CATALOGUE
    ]
    return "\n".join(
        [
            "# Errors",
            "",
            "Every error is a sentence, a remedy and an exit status; with `--json` they are `failure.message`,",
            "`failure.remedy`, `failure.code` and `exit_status`. The remedy given with an error may say more than",
            "the one below. Exit status 0 is done, 3 a backup that was published and is marked incomplete.",
            "The table is made from `src/cosmos_coherence/errors.py`: `python tests/unit/test_docs.py`.",
            "",
            "| code | exit status | HTTP status | may help to try again | meaning | remedy |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def test_the_page_of_errors_is_current():
    assert (ROOT / "docs/errors.md").read_text("utf-8") == errors_page()


# ---------------------------------------------------------------------------------------------------------- audit
def audit_page() -> str:
    """``docs/audit.md``: what is said by hand, and the rules as the table of the program says them."""
    before, _, _ = (ROOT / "docs/audit.md").read_text("utf-8").partition("| rule |")
    rows = [
        f"| `{rule.id}` | {rule.title} | {' | '.join(rule.severity.get(p, '') for p in ('production', 'development'))} "
        f"| {rule.guide} | {rule.remedy} |"
        for rule in audit.RULES
    ]
    head = "| rule | what it asks for | production | development | section of the guide | remedy |"
    return before + "\n".join([head, "|---|---|---|---|---|---|", *rows, ""])


def test_the_page_of_the_audit_is_current():
    assert (ROOT / "docs/audit.md").read_text("utf-8") == audit_page()


if __name__ == "__main__":
    (ROOT / "docs/errors.md").write_text(errors_page(), "utf-8")
    (ROOT / "docs/audit.md").write_text(audit_page(), "utf-8")


# ----------------------------------------------------------------------------------------------------- the repository
def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("this is no git work tree")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_change_note_says_something():
    notes = [path for path in (ROOT / "changes").glob("*.md") if path.name != "README.md"]
    assert notes
    for note in notes:
        assert re.fullmatch(r"\d+-[a-z0-9-]+\.md", note.name)
        assert len(note.read_text("utf-8").split()) > 5


def test_no_file_names_a_registry_or_a_workplace():
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "crates" + ".io", "proxy" + ".golang"]
    hosts += ["registry-1" + ".docker", "ghcr" + ".io", "quay" + ".io"]
    places = ["/" + "work/", "/tmp" + "/w/"]
    wrong = re.compile(b"|".join(re.escape(name.encode()) for name in hosts + places))
    found = {str(path.relative_to(ROOT)): hit[0] for path in files() if (hit := wrong.search(path.read_bytes()))}
    found.pop("uv.lock", None)  # uv writes it, with the address of every package
    assert found == {}
