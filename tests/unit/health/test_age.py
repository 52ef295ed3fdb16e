from __future__ import annotations

import pytest

from cosmos_coherence.health import age


@pytest.mark.parametrize(
    ("newest", "outcome"), [(None, "fail"), (1000.0, "ok"), (899.0, "warn"), (799.0, "fail"), (1001.0, "warn")]
)
def test_the_age_of_the_backup(newest, outcome):
    found = age.check_backup_age(newest, now_s=1000.0, warn_s=100.0, fail_s=200.0)
    assert found.outcome == outcome
    assert [n.value for n in found.numbers] == ([] if newest is None else [1000.0 - newest])


@pytest.mark.parametrize(
    ("proven", "outcome", "detail"), [(None, "ok", "never"), (999.0, "ok", "0.0 d"), (0.0, "warn", "0.0 d")]
)
def test_the_age_of_the_proof(proven, outcome, detail):
    found = age.check_proof_age(proven, now_s=1000.0, warn_s=100.0)
    assert (found.outcome, found.detail) == (outcome, detail)
