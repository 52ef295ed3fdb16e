"""Tests of one file share what they start, so with several workers they have to meet in one."""

from __future__ import annotations

import os

import pytest


def test_tests_of_one_file_go_to_one_worker(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith(f"@{request.path}")
