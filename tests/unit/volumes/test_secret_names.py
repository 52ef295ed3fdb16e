from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_coherence.volumes import secret_names

SECRET = "hunter2-" + "correct-horse"


@pytest.mark.parametrize(
    "variable",
    [
        f"POSTGRES_PASSWORD={SECRET}", f"db_password={SECRET}", f"PGPASSWORD={SECRET}", f"MYSQL_PWD={SECRET}",
        f"API_KEY={SECRET}", f"AWS_SECRET_ACCESS_KEY={SECRET}", f"GITHUB_TOKEN={SECRET}", f"REDISCLI_AUTH={SECRET}",
        f"DATABASE_URL=postgres://shop:{SECRET}@db/shop", f"REDIS_URL=redis://:{SECRET}@redis:6379",
        "ID=AKIA" + "ABCDEFGHIJKLMNOP", "X=-----BEGIN RSA PRIVATE KEY-----", "CI=ghp_" + "a" * 36,
    ],
)  # fmt: skip
def test_variables_that_hold_a_secret(variable):
    (found,) = secret_names.in_environment([variable])
    assert variable.partition("=")[0] in found
    assert SECRET not in found
    assert secret_names.in_labels(dict([variable.split("=", 1)]))


@pytest.mark.parametrize(
    "variable",
    [
        "POSTGRES_PASSWORD_FILE=/run/secrets/password", "PASSWORD=/run/secrets/password", "PASSWORD=",
        "PASSWORD=$OTHER", "ALLOW_EMPTY_PASSWORD=yes", "PASSWORD_MIN_LENGTH=12", "TOKEN_EXPIRY=3600",
        "GPG_KEY=A035C8C19219BA821ECEA86B64E628F", "PWD=/srv/x", "KEYBOARD=us", "URL=https://example.org/a:b@c",
        "DATABASE_URL=postgresql+psycopg://cosmos@db:5432/x",
        "PATH=/usr/bin", "SECRET", "AUTHOR=me", "MONKEY=george the first",
    ],
)  # fmt: skip
def test_variables_that_do_not(variable):
    assert secret_names.in_environment([variable]) == ()


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (f"/bin/sh -c #(nop)  ENV API_TOKEN={SECRET}", 1),
        (f"|1 NPM_TOKEN={SECRET} /bin/sh -c npm ci", 1),
        (f"RUN /bin/sh -c curl https://me:{SECRET}@host/x # buildkit", 1),
        (f"RUN mysql --password={SECRET}", 1),
        ("ENV PASSWORD_FILE=/run/secrets/x", 0),
        ("RUN /bin/sh -c set -eux; savedAptMark=\"$(apt-mark showmanual)\"", 0),
        ("ENV GPG_KEY=A035C8C19219BA821ECEA86B64E628F8D684696D", 0),
    ],
)  # fmt: skip
def test_layers_of_an_image(command, found):
    said = secret_names.in_history(['CMD ["x"]', command, "ADD file:x in /"])
    assert len(said) == found
    assert all(SECRET not in text and text.startswith("layer 2") for text in said)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=40), max_size=4))
def test_whatever_stands_there_nothing_is_repeated(texts):
    value = "qzx" + "v" * 20
    found = secret_names.in_environment([f"{text}_PASSWORD={value}" for text in texts])
    found += secret_names.in_history([f"{text} TOKEN={value} {text}" for text in texts])
    assert not any(value in text or not text.isprintable() for text in found)
