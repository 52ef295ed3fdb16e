"""The databases that a history may lie in, each with nothing in it yet."""

from __future__ import annotations

import pytest

from cosmos_coherence.history import database
from cosmos_coherence.settings import ServeSettings
from support import stores


@pytest.fixture(scope="module")
def server():
    with stores.postgres() as found:
        yield found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty(request, tmp_path):
    if request.param == "sqlite":
        found = database.connect(ServeSettings(), tmp_path)
    else:
        server = request.getfixturevalue("server")
        found = database.connect(
            ServeSettings(database_url=server.database(), database_password_file=server.password_file)
        )
    assert found.dialect.name == request.param
    yield found
    found.dispose()
