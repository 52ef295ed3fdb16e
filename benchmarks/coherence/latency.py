"""``python -m benchmarks.coherence.latency``: how long the writers' writes take before, during and after a backup.

A write is one number through all stores. Draws ``docs/latency.svg`` and prints the figures.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.coherence import campaign
from benchmarks.coherence.stacks import CountingStack

AROUND_S = 4.0
_BUCKET_S = 0.1
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 900, 380, 60, 40, 50
_COLOURS = {"p50": "#2563eb", "p99": "#dc2626"}


@dataclass(frozen=True)
class Write:
    """One number through all stores of one writer."""

    ended_s: float
    """Since the backup was called."""
    ms: float


@dataclass(frozen=True)
class Taken:
    """What was measured around one backup."""

    writes: tuple[Write, ...]
    seconds: float
    """How long the backup took."""
    held_s: float
    pause_ms: float


def measure(stack: CountingStack) -> Taken:
    """One backup in the middle of steady writing."""
    campaign.warmed(stack, 1)
    time.sleep(AROUND_S + 1)
    began_ns = time.time_ns()
    saved = campaign.save(stack, {"COSMOS_REPOSITORY__URL": ""})
    seconds = (time.time_ns() - began_ns) / 1e9
    time.sleep(AROUND_S)
    stack.stop()
    writes = tuple(_writes(stack.ledger(), len(stack.stores), began_ns))
    return Taken(writes, seconds, (saved.instant_ns - began_ns) / 1e9, saved.pause_ms)


def _writes(ledger: Mapping[int, Sequence[int]], stores: int, began_ns: int) -> Iterator[Write]:
    for times in ledger.values():
        firsts = times[::stores]
        for start, end in itertools.pairwise(firsts):
            if end - began_ns >= -AROUND_S * 1e9:
                yield Write((end - began_ns) / 1e9, (end - start) / 1e6)


def share(values: Sequence[float], part: float) -> float:
    """The value that this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)]


def figures(taken: Taken) -> Iterator[str]:
    """p50, p99 and worst of each phase, a line each."""
    phases = {
        "before": [w.ms for w in taken.writes if w.ended_s < 0],
        "during": [w.ms for w in taken.writes if 0 <= w.ended_s < taken.seconds],
        "after": [w.ms for w in taken.writes if w.ended_s >= taken.seconds],
    }
    for name, ms in phases.items():
        rate = len(ms) / (taken.seconds if name == "during" else AROUND_S)
        yield (
            f"{name:7} p50 {share(ms, 0.5):.2f} ms, p99 {share(ms, 0.99):.2f} ms, worst {max(ms):.1f} ms, {rate:.0f}/s"
        )
    yield f"backup {taken.seconds:.2f} s, writers held {taken.pause_ms:.1f} ms"


def picture(taken: Taken) -> str:
    """The same over time as SVG, in buckets of a tenth of a second; the scale is logarithmic."""
    buckets: dict[int, list[float]] = {}
    for write in taken.writes:
        buckets.setdefault(math.floor(write.ended_s / _BUCKET_S), []).append(write.ms)
    end = max(write.ended_s for write in taken.writes)
    lowest = math.floor(math.log10(min(share(ms, 0.5) for ms in buckets.values())))
    highest = math.ceil(math.log10(max(share(ms, 0.99) for ms in buckets.values())))

    def across(seconds: float) -> float:
        return _LEFT + (seconds + AROUND_S) / (end + AROUND_S) * (_WIDTH - _LEFT - 20)

    def up(ms: float) -> float:
        return _TOP + (highest - math.log10(ms)) / (highest - lowest) * (_HEIGHT - _TOP - _BOTTOM)

    foot = _HEIGHT - _BOTTOM
    shapes = [
        f'<rect x="{across(0):.1f}" y="{_TOP}" width="{across(taken.seconds) - across(0):.1f}" height="{foot - _TOP}"'
        ' fill="#f1f5f9"/>',
        f'<text x="{across(taken.seconds / 2):.1f}" y="{_TOP - 22}" text-anchor="middle">backup,'
        f" {taken.seconds:.1f} s</text>",
        f'<line x1="{across(taken.held_s):.1f}" x2="{across(taken.held_s):.1f}" y1="{_TOP}" y2="{foot}"'
        ' stroke="#64748b" stroke-dasharray="4 3"/>',
        f'<text x="{across(taken.held_s):.1f}" y="{_TOP - 6}" text-anchor="middle">held {taken.pause_ms:.0f} ms</text>',
    ]
    for power in range(lowest, highest + 1):
        y = up(10.0**power)
        shapes.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#cbd5e1"/>')
        shapes.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>')
    for second in range(-int(AROUND_S), int(end) + 1):
        shapes.append(f'<text x="{across(second):.1f}" y="{foot + 18}" text-anchor="middle">{second} s</text>')
    for place, (name, colour) in enumerate(_COLOURS.items()):
        part = float(f"0.{name[1:]}")
        points = " ".join(
            f"{across((bucket + 0.5) * _BUCKET_S):.1f},{up(share(ms, part)):.1f}"
            for bucket, ms in sorted(buckets.items())
        )
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        shapes.append(f'<text x="{_LEFT + 60 * place}" y="{_HEIGHT - 10}" fill="{colour}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        f' font-size="12"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>{"".join(shapes)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the writers around a backup and draw it.")
    parser.add_argument("--runtime", choices=["process", "docker"], default="docker")
    parser.add_argument("--picture", type=Path, default=Path("docs/latency.svg"))
    options = parser.parse_args()
    with campaign.opened(options.runtime) as stack:
        taken = measure(stack)
    options.picture.write_text(picture(taken), "utf-8")
    print(*figures(taken), sep="\n")


if __name__ == "__main__":
    main()
