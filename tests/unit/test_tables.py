"""Tables as people write them: every fault with its path, and nothing loaded that costs a start much."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from cosmos_coherence import tables
from cosmos_coherence.tables import Table, Written


class Inner(Table, frozen=True):
    size: Annotated[int, Meta(ge=1)] = 1
    where: Path | None = None


class Outer(Table, frozen=True):
    name: str
    on: bool = False
    half: Annotated[float, Written(lambda text: float(str(text)) / 2)] = 0.0
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    by_name: dict[Annotated[str, Meta(pattern="^[a-z]+$")], Inner] = msgspec.field(default_factory=dict)


def test_what_is_written_is_there():
    data = {"name": "x", "on": "true", "half": "3", "inner": {"where": "a/b"}, "many": [{"size": "2"}, {}],
            "by_name": {"y": {"size": 3}}}  # fmt: skip
    found = tables.read(Outer, data)
    assert found == Outer(
        name="x", on=True, half=1.5, inner=Inner(where=Path("a/b")), many=(Inner(size=2), Inner()),
        by_name={"y": Inner(size=3)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("On", True), ("1", True), ("no", False), ("OFF", False), ("0", False)]
)
def test_truths_as_people_write_them(text, value):
    assert tables.read(Outer, {"name": "x", "on": text}).on is value


def test_every_fault_has_its_path():
    data = {"on": "maybe", "half": "three", "inner": {"size": 0, "colour": 1}, "many": [{}, {"where": 7}],
            "by_name": {"Y": {"size": "x"}, "z": 4}}  # fmt: skip
    with pytest.raises(tables.Wrong) as caught:
        tables.read(Outer, data)
    assert sorted(path for path, _ in caught.value.faults) == [
        ("by_name", "Y"), ("by_name", "Y", "size"), ("by_name", "z"), ("half",), ("inner", "colour"), ("inner", "size"),
        ("many", "1", "where"), ("name",), ("on",),
    ]  # fmt: skip


@pytest.mark.parametrize("data", [None, [], "x", 3, {"name": None}, {"name": "x", "many": {}}, {"name": "x", 3: 4}])
def test_no_table(data):
    with pytest.raises(tables.Wrong):
        tables.read(Outer, data)


def test_every_name():
    assert list(tables.names(Outer)) == ["name", "on", "half", "inner.size", "inner.where", "many", "by_name"]


def test_a_start_loads_no_pydantic():
    """It alone took a fifth of a second, in every call."""
    code = (
        "import sys; from cosmos_coherence.cli import main; main.app(['doctor', '--help'], standalone_mode=False);"
        "from cosmos_coherence import settings; print('pydantic' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "False"
