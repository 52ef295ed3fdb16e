"""The picture is a file of its own, and its areas are as large as what they stand for."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from cosmos_coherence.volumes.picture import HEIGHT, WIDTH, Area, treemap

_SVG = "{http://www.w3.org/2000/svg}"


def boxes(picture: str) -> dict[str, tuple[float, float, float, float]]:
    root = ElementTree.fromstring(picture)
    found = {}
    for group in root.iter(f"{_SVG}g"):
        rect, title = group.find(f"{_SVG}rect"), group.find(f"{_SVG}title")
        assert rect is not None
        assert title is not None
        left, top, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        found[str(title.text)] = left, top, width, height
    return found


def test_areas_are_as_large_as_their_shares() -> None:
    sizes = [600, 300, 200, 100, 50, 25]
    found = boxes(treemap(Area("v", sum(sizes), "?", tuple(Area(f"f{s}", s, f"{s} B") for s in sizes))))
    areas = {name: box[2] * box[3] for name, box in found.items()}
    unit = areas["f600: 600 B"] / 600
    for size in sizes:
        assert areas[f"f{size}: {size} B"] == pytest.approx(size * unit, rel=0.02)
    for left, top, width, height in found.values():
        assert 0 <= left <= left + width <= WIDTH + 0.2
        assert 0 <= top <= top + height <= HEIGHT + 0.2


def test_parts_lie_inside() -> None:
    inner = Area("inner", 40, "40", (Area("core", 30, "30"),))
    found = boxes(treemap(Area("v", 100, "100", (Area("outer", 90, "90", (inner,)), Area("other", 10, "10")))))
    for within, around in (("core: 30", "inner: 40"), ("inner: 40", "outer: 90")):
        left, top, width, height = found[within]
        x, y, w, h = found[around]
        assert x <= left
        assert y <= top
        assert left + width <= x + w + 0.2
        assert top + height <= y + h + 0.2


def test_hostile_names_stay_text() -> None:
    name = "</title><script>alert(1)</script>&\"'"
    picture = treemap(Area(name, 10, "10 B", (Area(name, 10, "10 B"),)))
    assert "<script" not in picture
    assert f"{name}: 10 B" in boxes(picture)
    assert not [word for word in ("href", "http:", "url(") if word in picture.replace("http://www.w3.org/2000/svg", "")]


def test_nothing_is_an_empty_picture() -> None:
    assert boxes(treemap(Area("v", 0, "0 B", (Area("empty", 0, "0 B"),)))) == {}
