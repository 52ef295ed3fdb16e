"""The development stack, from a fresh copy of the tree, with the names and paths that the guide uses."""

from __future__ import annotations

import gzip
import json
import re

import httpx
import pytest

from support.reference_stack import ReferenceStack, eventually, reference_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

CONTAINERS = {"cosmos-db", "cosmos-redis", "cosmos-api", "cosmos-dashboard", "cosmos-agent"}
VOLUMES = {"postgres-data", "redis-data", "api-cache", "dashboard-cache", "cosmos-state"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with reference_stack(tmp_path_factory.mktemp("development")) as found:
        found.up()
        yield found


def get(stack: ReferenceStack, service: str, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{stack.ports[service]}{path}", timeout=30, trust_env=False)


def outcomes(stack: ReferenceStack) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in get(stack, "api", "/health").json()["checks"]}


def test_everything_is_there_and_healthy(stack):
    found = stack.inspect()
    assert set(found) == CONTAINERS
    assert {c["State"]["Health"]["Status"] for c in found.values()} == {"healthy"}
    listed = stack.shell("docker volume ls --format '{{.Name}}' | grep ^cosmos-coherence").split()
    assert set(listed) == {f"cosmos-coherence_{name}" for name in VOLUMES}


def test_the_api_says_that_all_three_are_well(stack):
    answer = get(stack, "api", "/health")
    assert answer.status_code == 200
    assert outcomes(stack) == {"database": "ok", "cache": "ok", "disk": "ok"}
    assert 'cosmos_check_ok{check="database"} 1.0' in get(stack, "api", "/metrics").text


def test_the_dashboard_shows_its_page(stack):
    text = get(stack, "dashboard", "/").text
    assert "<h1>Cosmos Coherence</h1>" in text
    assert "database" in text


def test_ports_are_open_on_loopback_only(stack):
    for name, container in stack.inspect().items():
        addresses = {b["HostIp"] for bindings in container["HostConfig"]["PortBindings"].values() for b in bindings}
        assert addresses == ({"127.0.0.1"} if name in ("cosmos-api", "cosmos-dashboard") else set()), name


def test_bind_mounts_are_those_of_the_guide(stack):
    folder = stack.folder
    tree = {(str(folder / name), f"/app/{name}") for name in ("src", "configs", "tests", "data")}
    found = stack.inspect()
    for name in ("cosmos-api", "cosmos-dashboard"):
        assert binds(found[name]) == tree, name
    assert (str(folder / "backups"), "/app/backups") in binds(found["cosmos-agent"])
    for name in ("cosmos-db", "cosmos-redis"):
        assert binds(found[name]) == set(), name


def binds(container) -> set[tuple[str, str]]:
    mounts = [
        m for m in container["Mounts"] if m["Type"] == "bind" and not m["Destination"].startswith("/run/secrets/")
    ]
    return {(m["Source"], m["Destination"]) for m in mounts}


def test_logs_are_rotated_and_no_secret_is_in_an_environment(stack):
    password = (stack.folder / "configs/development-password").read_text().strip()
    for name, container in stack.inspect().items():
        log = container["HostConfig"]["LogConfig"]
        assert (log["Type"], set(log["Config"])) == ("json-file", {"max-size", "max-file"}), name
        assert password not in json.dumps(container["Config"]), name


def test_the_served_parts_run_without_privileges_and_exec_is_root(stack):
    for name in ("cosmos-api", "cosmos-dashboard"):
        status = stack.run("docker", "exec", name, "cat", "/proc/1/status").stdout
        assert re.search(r"^Uid:\s+1000\s+1000\s+1000\s+1000$", status, re.M), name
        assert stack.run("docker", "exec", name, "id", "-u").stdout.strip() == "0"


def test_the_agent_has_few_capabilities_and_is_never_held(stack):
    agent = stack.inspect()["cosmos-agent"]
    assert agent["HostConfig"]["CapDrop"] == ["ALL"]
    assert "SYS_ADMIN" not in str(agent["HostConfig"]["CapAdd"])
    assert agent["Config"]["Labels"]["cosmos.hold"] == "never"
    assert stack.run("docker", "exec", "cosmos-agent", "docker", "compose", "version").returncode == 0


def test_the_database_lines_of_the_guide(stack):
    stack.shell("docker exec cosmos-db psql -U cosmos cosmos_coherence -c 'create table if not exists guide (n int)'")
    stack.shell("docker exec cosmos-db pg_dump -U cosmos cosmos_coherence | gzip > backup.sql.gz")
    dump = gzip.decompress((stack.folder / "backup.sql.gz").read_bytes()).decode()
    assert "CREATE TABLE public.guide" in dump
    assert "PostgreSQL database dump complete" in dump
    assert "db" in stack.shell("docker compose ps db")
    assert stack.shell("docker compose logs db --tail=50")


def test_the_cache_lines_of_the_guide(stack):
    stack.shell("docker exec cosmos-redis redis-cli set guide 1")
    assert "Background saving started" in stack.shell("docker exec cosmos-redis redis-cli BGSAVE")
    eventually(lambda: stack.shell("docker cp cosmos-redis:/data/dump.rdb redis_backup.rdb"))
    assert (stack.folder / "redis_backup.rdb").read_bytes().startswith(b"REDIS")
    assert "appendonly yes" in " ".join(stack.shell("docker exec cosmos-redis redis-cli config get appendonly").split())


def test_the_volume_lines_of_the_guide(stack):
    assert "cosmos-coherence_postgres-data" in stack.shell("docker volume inspect cosmos-coherence_postgres-data")
    assert "/data" in stack.shell("docker run --rm -v cosmos-coherence_postgres-data:/data alpine du -sh /data")
    stack.shell(
        "docker run --rm -v cosmos-coherence_api-cache:/source:ro -v $(pwd)/backups:/backup"
        " alpine tar czf /backup/api-cache.tar.gz -C /source ."
    )
    assert (stack.folder / "backups/api-cache.tar.gz").stat().st_size > 0


def test_the_permission_lines_of_the_guide(stack):
    lost = stack.folder / "data/outputs/lost"
    lost.write_text("x")
    lost.chmod(0o600)
    stack.shell("docker exec cosmos-api chown -R appuser:appuser /app/data")
    stack.shell("docker exec cosmos-api chmod -R 755 /app/data")
    assert (lost.stat().st_uid, lost.stat().st_mode & 0o777) == (1000, 0o755)
    assert {p.name for p in (stack.folder / "data").iterdir()} >= {"outputs", "cache", "results"}


def test_code_is_loaded_again_when_it_changes(stack):
    app = stack.folder / "src/cosmos_coherence/api/probes.py"
    app.write_text(app.read_text().replace('"answers")', '"answers anew")'))

    def anew() -> None:
        assert "answers anew" in get(stack, "api", "/health").text

    eventually(anew)


def test_another_server_version_is_one_variable_away(stack):
    assert "postgres:17" in stack.shell("POSTGRES_IMAGE=postgres:17 docker compose config")


def test_with_the_database_down_the_api_names_it_and_the_page_still_shows(stack):
    stack.compose("stop", "db")
    try:
        assert get(stack, "api", "/health").status_code == 503
        assert outcomes(stack) == {"database": "fail", "cache": "ok", "disk": "ok"}
        assert "Not well: database." in get(stack, "dashboard", "/").text
    finally:
        stack.compose("start", "db")

    def well() -> None:
        assert get(stack, "api", "/health").status_code == 200

    eventually(well)


def test_with_the_api_stopped_the_page_shows_what_it_knew(stack):
    get(stack, "dashboard", "/")
    stack.compose("stop", "api")
    try:
        text = get(stack, "dashboard", "/").text
        assert "The API does not answer." in text
        assert "the last one known" in text
    finally:
        stack.compose("start", "api")


def test_it_stops_without_being_killed_and_comes_back_with_its_data(stack):
    stack.shell("docker exec cosmos-redis redis-cli set kept yes")
    stack.compose("stop")
    codes = {name: container["State"]["ExitCode"] for name, container in stack.inspect().items()}
    assert 137 not in codes.values(), codes
    stack.up()
    assert stack.shell("docker exec cosmos-redis redis-cli get kept").strip() == "yes"
