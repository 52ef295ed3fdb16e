from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import docker_stack
from support.docker_stack import ComposeStack, docker

SOURCE = Path(__file__).parents[2] / "src" / "cosmos_coherence"


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """PostgreSQL, Redis and a writer, for tests that leave it as it was."""
    with docker_stack.application(tmp_path_factory.mktemp("application")) as stack:
        yield stack


@pytest.fixture(scope="session")
def program_image() -> Iterator[str]:
    """Our own image with the source as it is now."""
    base = "cosmos-coherence:latest"
    if not docker("image", "ls", "--quiet", base).strip():
        pytest.skip(f"image {base} is not on the engine: make images")
    find = "import cosmos_coherence as c; print(c.__path__[0])"
    where = docker("run", "--rm", "--network", "none", base, "python", "-c", find).strip()
    name = f"cosmos-test-program:{uuid.uuid4().hex[:10]}"
    container = docker("create", "--network", "none", base).strip()
    try:
        docker("cp", "--quiet", f"{SOURCE}/.", f"{container}:{where}", check=True)
        docker("commit", container, name)
    finally:
        docker("rm", "--force", container)
    yield name
    docker("rmi", "--force", name)
