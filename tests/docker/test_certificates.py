"""The production stack: hardened, behind TLS, on a self-signed certificate until a real ACME server has issued one."""

from __future__ import annotations

import json
import re
import socket
import ssl

import httpx
import pytest

from support.reference_stack import PEBBLE, PRODUCTION, ReferenceStack, eventually, reference_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

DOMAIN = "cosmos.test"
VOLUMES = {
    "postgres-data", "redis-data", "api-cache", "dashboard-cache", "cosmos-state", "app-data", "nginx-cache",
    "certbot-www", "certbot-conf",
}  # fmt: skip
WITH_PEBBLE = f"""
services:
  pebble:
    image: {PEBBLE}
  nginx:
    environment: {{ COSMOS_TLS_POLL_S: "1" }}
    networks: {{ default: {{ aliases: [{DOMAIN}] }} }}
  certbot:
    environment: {{ REQUESTS_CA_BUNDLE: /pebble.pem }}
    volumes: ["./pebble.pem:/pebble.pem:ro"]
"""
ACME = {
    "COSMOS_DOMAIN": DOMAIN,
    "COSMOS_ACME_EMAIL": f"admin@{DOMAIN}",
    "COSMOS_ACME_SERVER": "https://pebble:14000/dir",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with reference_stack(tmp_path_factory.mktemp("production"), PRODUCTION) as found:
        refused = found.compose("up", "-d", check=False)
        assert refused.returncode != 0
        assert "secrets/postgres-password" in refused.stderr
        found.run("sh", "docker/make-secrets.sh")
        found.up()
        yield found


def certificate(stack: ReferenceStack) -> str:
    """The one that nginx shows, in PEM."""
    return ssl.get_server_certificate(("127.0.0.1", stack.ports["https"]), timeout=10)


def get(stack: ReferenceStack, path: str) -> httpx.Response:
    return httpx.get(f"https://127.0.0.1:{stack.ports['https']}{path}", verify=False, timeout=30, trust_env=False)


def test_the_password_is_made_once_and_the_folder_is_closed(stack):
    secret = stack.folder / "secrets/postgres-password"
    before = secret.read_text()
    stack.run("sh", "docker/make-secrets.sh")
    assert secret.read_text() == before
    assert re.fullmatch(r"[0-9a-f]{48}", before)
    assert secret.parent.stat().st_mode & 0o777 == 0o700


def test_everything_is_healthy_behind_tls(stack):
    found = stack.inspect()
    assert {c["State"]["Health"]["Status"] for c in found.values()} == {"healthy"}
    assert {"cosmos-nginx", "cosmos-certbot"} < set(found)
    listed = stack.shell("docker volume ls --format '{{.Name}}' | grep ^cosmos-coherence_").split()
    assert set(listed) == {f"cosmos-coherence_{name}" for name in VOLUMES}
    assert get(stack, "/api/health").status_code == 200
    assert "<h1>Cosmos Coherence</h1>" in get(stack, "/").text
    plain = httpx.get(f"http://127.0.0.1:{stack.ports['http']}/runs", trust_env=False)
    assert (plain.status_code, plain.headers["Location"]) == (301, "https://127.0.0.1/runs")


def test_old_tls_is_refused(stack):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        socket.create_connection(("127.0.0.1", stack.ports["https"]), 10) as plain,
    ):
        context.wrap_socket(plain)


def test_only_the_agent_is_root_and_nothing_is_writable_but_its_volumes(stack):
    password = (stack.folder / "secrets/postgres-password").read_text()
    for name, container in stack.inspect().items():
        host = container["HostConfig"]
        uid = stack.run("docker", "exec", name, "id", "-u").stdout.strip()
        assert (uid == "0") == (name == "cosmos-agent"), name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        status = stack.run("docker", "exec", name, "cat", "/proc/1/status").stdout
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.M), name
        assert re.search(r"^CapEff:\s+0+$", status, re.M) or name == "cosmos-agent", name
        assert host["Memory"] > 0, name
        assert host["NanoCpus"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert set(host["LogConfig"]["Config"]) == {"max-size", "max-file"}, name
        assert password not in json.dumps(container["Config"]), name


def test_named_volumes_only_but_the_backups_and_the_socket(stack):
    for name, container in stack.inspect().items():
        binds = {m["Destination"] for m in container["Mounts"] if m["Type"] == "bind"}
        binds -= {"/run/secrets/postgres-password"}
        assert binds == ({"/app/backups", "/var/run/docker.sock"} if name == "cosmos-agent" else set()), name


def test_ports_are_those_of_nginx_on_loopback(stack):
    for name, container in stack.inspect().items():
        bindings = [b for found in container["HostConfig"]["PortBindings"].values() for b in found]
        assert {b["HostIp"] for b in bindings} == ({"127.0.0.1"} if name == "cosmos-nginx" else set()), name


def test_the_permission_lines_of_the_guide_as_root(stack):
    stack.shell("docker exec -u root cosmos-api touch /app/data/outputs/lost")
    stack.shell("docker exec -u root cosmos-api chown -R appuser:appuser /app/data")
    stack.shell("docker exec -u root cosmos-api chmod -R 755 /app/data")
    assert stack.shell("docker exec cosmos-api stat -c '%U %a' /app/data/outputs/lost") == "appuser 755\n"


def test_nginx_takes_over_the_certificate_that_an_acme_server_issues(stack):
    self_signed = certificate(stack)
    assert "Pebble" not in described(stack, self_signed)
    (stack.folder / "pebble.yaml").write_text(WITH_PEBBLE)
    (stack.folder / "pebble.pem").write_text(
        stack.run("docker", "run", "--rm", PEBBLE, "cat", "/etc/pebble.pem").stdout
    )
    files = ":".join((*PRODUCTION, "pebble.yaml"))
    acme = ReferenceStack(stack.folder, {**stack.environment, **ACME, "COMPOSE_FILE": files}, stack.ports)
    try:
        acme.compose("up", "-d", "--wait", "pebble")
        acme.compose("up", "-d", "nginx")
        started = acme.inspect()["cosmos-nginx"]["State"]["StartedAt"]
        acme.up()

        def issued() -> None:
            assert "Pebble" in described(stack, certificate(stack))

        eventually(issued)
        assert acme.inspect()["cosmos-nginx"]["State"]["StartedAt"] == started
        assert get(stack, "/api/health").status_code == 200
        acme.compose("restart", "nginx")  # it starts with the real one now
        eventually(issued)
        stored = acme.shell("docker exec cosmos-nginx cat /certificates/live/cosmos/fullchain.pem")
        assert certificate(stack).strip() in stored
    finally:
        acme.compose("rm", "--stop", "--force", "pebble")


def described(stack: ReferenceStack, pem: str) -> str:
    """Issuer and names of a certificate, by the openssl that nginx's container has."""
    (stack.folder / "shown.pem").write_text(pem)
    return stack.shell("docker exec -i cosmos-nginx openssl x509 -noout -issuer -ext subjectAltName < shown.pem")
