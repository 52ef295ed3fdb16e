"""What somebody does who follows the guide: lines as they stand there, data to lose, answers to questions."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path

from support.reference_stack import ReferenceStack

ROWS = 1000
KEYS = 50
_SQL = ("docker", "exec", "cosmos-db", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "cosmos", "cosmos_coherence")


def installed(stack: ReferenceStack) -> ReferenceStack:
    """The program beside the scripts, as `make setup` installs it."""
    (stack.folder / ".venv" / "bin").mkdir(parents=True)
    (stack.folder / ".venv" / "bin" / "cosmos").symlink_to(Path(sys.executable).with_name("cosmos"))
    return stack


def sql(stack: ReferenceStack, statement: str) -> str:
    """What the stack's database answers."""
    return stack.run(*_SQL, "-c", statement).stdout.strip()


def keys(stack: ReferenceStack) -> int:
    """How many of our keys the stack's cache holds."""
    return int(stack.shell("docker exec cosmos-redis redis-cli --scan --pattern 'guide:*' | wc -l"))


def fill(stack: ReferenceStack) -> None:
    """Something in every store."""
    sql(stack, f"CREATE TABLE guide (x int); INSERT INTO guide SELECT generate_series(1, {ROWS})")
    stack.shell(
        f"for i in $(seq {KEYS}); do echo SET guide:$i value; done | docker exec -i cosmos-redis redis-cli >/dev/null"
    )
    stack.shell("docker exec cosmos-api sh -c 'echo report > /app/data/outputs/report.txt'")
    stack.shell("docker exec cosmos-api sh -c 'echo cached > /var/cache/cosmos/guide'")


def spoil(stack: ReferenceStack) -> None:
    """Lose some of it everywhere."""
    sql(stack, "DELETE FROM guide WHERE x > 10")
    stack.shell("docker exec cosmos-redis redis-cli FLUSHALL")
    stack.shell("docker exec cosmos-api rm /app/data/outputs/report.txt /var/cache/cosmos/guide")


def contents(stack: ReferenceStack) -> tuple[str, int, str, str]:
    """What the four stores hold of it."""
    return (
        sql(stack, "SELECT count(*), sum(x) FROM guide"),
        keys(stack),
        stack.shell("docker exec cosmos-api cat /app/data/outputs/report.txt"),
        stack.shell("docker exec cosmos-api cat /var/cache/cosmos/guide"),
    )


FILLED = (f"{ROWS}|{ROWS * (ROWS + 1) // 2}", KEYS, "report\n", "cached\n")
"""``contents`` after ``fill``."""


def healths(stack: ReferenceStack) -> set[str]:
    """What the engine says of the containers' health."""
    return {container["State"]["Health"]["Status"] for container in stack.inspect().values()}


def typed(stack: ReferenceStack, line: str, answer: str, *asked: str) -> tuple[int, str]:
    """The line on a terminal, ``answer`` typed once all of ``asked`` shows; its exit status and what it said."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(stack.folder)
        os.execvpe("bash", ["bash", "-c", line], {**stack.environment, "TERM": "xterm", "LINES": "60"})
    said = b""
    waiting = answer.encode()
    awaited = [word.encode() for word in asked or ["[y/N]"]]
    while data := _heard(terminal):
        said += data
        if waiting and all(word in said for word in awaited):
            os.write(terminal, waiting)
            waiting = b""
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.decode(errors="replace")


def _heard(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # nobody is at the other end any more
        return b""


def newest(stack: ReferenceStack) -> str:
    """File name of the newest backup that is not a safety backup."""
    listed = json.loads(stack.run("./scripts/restore.sh", "--json").stdout)
    return str(max(m["id"] for m in listed if not m["safety"])) + ".tar.gz"
