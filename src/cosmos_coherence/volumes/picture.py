"""What takes the room, as a picture: a treemap in SVG that needs nothing else and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

import msgspec

WIDTH: Final = 1200
HEIGHT: Final = 760
_TITLE: Final = 34
_LABEL: Final = 18
_LETTER: Final = 7.0
_SMALLEST: Final = 3.0
"""Nothing that is narrower is drawn."""
_COLOURS: Final = ("#4477aa", "#228833", "#aa3377", "#997700", "#0e7c86", "#a5402d", "#555588", "#6b6b6b")


class Area(msgspec.Struct, frozen=True):
    """Something that takes room, and what is in it. ``label`` is for people: only characters that can be printed."""

    label: str
    size: int
    said: str
    """Its size for people."""
    parts: tuple[Area, ...] = ()


class _Box(msgspec.Struct, frozen=True):
    left: float
    top: float
    width: float
    height: float


def treemap(whole: Area) -> str:
    """The picture, as the text of one SVG file: each area as large as its share, its parts inside it."""
    title = escape(f"{whole.label}: {whole.said}")
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="13"><title>{title}</title><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<text x="8" y="22" font-size="17" fill="#222">{title}</text>'
    ]
    inside = _Box(4, _TITLE, WIDTH - 8, HEIGHT - _TITLE - 4)
    for number, (area, box) in enumerate(_laid(whole.parts, inside)):
        _draw(area, box, _COLOURS[number % len(_COLOURS)], 0, drawn)
    return "\n".join([*drawn, "</svg>", ""])


def _draw(area: Area, box: _Box, colour: str, depth: int, drawn: list[str]) -> None:
    if min(box.width, box.height) < _SMALLEST:
        return
    place = f'x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    drawn.append(
        f'<g><title>{escape(f"{area.label}: {area.said}")}</title><rect {place} fill="{colour}" '
        f'fill-opacity="{0.2 if depth else 1}" stroke="#fff"/>'
    )
    labelled = box.height > _LABEL and box.width > 5 * _LETTER
    if labelled:
        text = f"{area.label} {area.said}"
        most = int((box.width - 8) / _LETTER)
        shown = text if len(text) <= most else text[: most - 1] + "…"
        drawn.append(f'<text x="{box.left + 4:.1f}" y="{box.top + 14:.1f}" fill="#fff">{escape(shown)}</text>')
    if labelled and area.parts:
        inside = _Box(box.left + 3, box.top + _LABEL, box.width - 6, box.height - _LABEL - 3)
        for part, room in _laid(area.parts, inside):
            _draw(part, room, "#000", depth + 1, drawn)
    drawn.append("</g>")


def _laid(areas: Sequence[Area], box: _Box) -> list[tuple[Area, _Box]]:
    """Where each lies: in rows along the shorter side, each row as long as it gets squarer (M. Bruls, K. Huizing, J. J.
    van Wijk, "Squarified treemaps", 2000)."""
    left = sorted((area for area in areas if area.size > 0), key=lambda area: (-area.size, area.label))
    laid: list[tuple[Area, _Box]] = []
    while left and min(box.width, box.height) > 0:
        unit = box.width * box.height / sum(area.size for area in left)
        side = min(box.width, box.height)
        count = 1
        while count < len(left) and _worst(left[: count + 1], unit, side) <= _worst(left[:count], unit, side):
            count += 1
        row, left = left[:count], left[count:]
        thick = sum(area.size for area in row) * unit / side
        at = 0.0
        for area in row:
            long = area.size * unit / thick
            if box.width >= box.height:
                laid.append((area, _Box(box.left, box.top + at, thick, long)))
            else:
                laid.append((area, _Box(box.left + at, box.top, long, thick)))
            at += long
        if box.width >= box.height:
            box = _Box(box.left + thick, box.top, box.width - thick, box.height)
        else:
            box = _Box(box.left, box.top + thick, box.width, box.height - thick)
    return laid


def _worst(row: Sequence[Area], unit: float, side: float) -> float:
    """How far the least square of a row is from a square."""
    total = sum(area.size for area in row) * unit
    return max(
        max(side * side * area.size * unit / total**2, total**2 / (side * side * area.size * unit)) for area in row
    )
