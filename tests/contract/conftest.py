"""The whole contract of a server's source on every version takes long: in the suite the versions in between, of which
others are older and newer, only show that all comes back; `make soak` runs the rest on them."""

from __future__ import annotations

import pytest

BETWEEN = {17, "6.2", "8.0"}
ALWAYS = ("everything_comes_back", "over_itself", "after_the_anchor", "undo_after_each_step")


@pytest.hookimpl(tryfirst=True)  # before the markers are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        version = item.callspec.params.get("version") if hasattr(item, "callspec") else None
        if version in BETWEEN and item.path.stem.endswith("_source") and not any(part in item.name for part in ALWAYS):
            item.add_marker(pytest.mark.soak)
