"""What holds for every test: what cannot run here is said, and in CI it is a failure; chance can be repeated."""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Generator

import pytest

from support import docker_stack

SEED = os.environ.get("COSMOS_TEST_SEED") or secrets.token_hex(4)


def pytest_addoption(parser: pytest.Parser) -> None:
    in_ci = os.environ.get("CI", "").lower() in ("1", "true", "yes")
    parser.addoption("--require-all", action="store_true", default=in_ci, help="a skipped test fails (default in CI)")


def pytest_configure(config: pytest.Config) -> None:
    private = "private_engine: would disturb an engine that somebody uses; needs COSMOS_TEST_DOCKER_HOST"
    config.addinivalue_line("markers", private)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is to run in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n`, tests of one file stay together, and so do all that need the reference stack's fixed names."""
    for item in items:
        fixed_names = "reference_stack" in vars(getattr(item, "module", None) or object)
        item.add_marker(pytest.mark.xdist_group("cosmos-coherence" if fixed_names else str(item.path)))


def pytest_report_header() -> str:
    return f"seed: COSMOS_TEST_SEED={SEED}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Chance that the seed in the header repeats, for each test its own."""
    return random.Random(f"{SEED} {request.node.nodeid}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    private = item.get_closest_marker("private_engine")
    if private and not os.environ.get("COSMOS_TEST_DOCKER_HOST"):
        pytest.skip("no private Docker engine: start one and name it in COSMOS_TEST_DOCKER_HOST")
    if (private or item.get_closest_marker("docker")) and (why := docker_stack.why_not()):
        pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _refuse_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _refuse_skip(collector.config, report)
    return report


def _refuse_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if config.getoption("--require-all"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"not run, but required here: {reason}"
