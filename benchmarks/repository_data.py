"""The data sets of ``benchmarks.repository``: the same bytes every time, made in seconds, nothing of them secret."""

import os
import random
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

MIB = 1 << 20
WORDS = [b"lorem", b"ipsum", b"dolor", b"sit", b"amet", b"consectetur", b"adipiscing", b"elit", b"sed", b"do",
         b"eiusmod", b"tempor", b"incididunt", b"ut", b"labore", b"et", b"dolore", b"magna", b"aliqua", b"enim",
         b"minim", b"veniam", b"quis", b"nostrud", b"exercitation", b"ullamco", b"laboris", b"nisi"]  # fmt: skip
STATES = [b"new", b"paid", b"sent", b"done", b"void"]


def make_a(root: Path) -> None:
    """2 GiB in 8 files: 1 GiB of dumped rows, half a GiB random, a shifted duplicate, zeros and low entropy."""
    root.mkdir(parents=True)
    with get_context("fork").Pool(2) as pool:
        pool.starmap(_dump, [(root / f"dump-{number}.sql", 256 * MIB, number) for number in range(4)])
    for number in range(2):
        with (root / f"random-{number}.bin").open("wb") as file:
            for _ in range(256):
                file.write(os.urandom(MIB))
    with (root / "shifted.sql").open("wb") as file, (root / "dump-0.sql").open("rb") as first:
        file.write(b"-- the same table, with one line more at its beginning\n")
        while piece := first.read(8 * MIB):
            file.write(piece)
    with (root / "low.bin").open("wb") as file:
        chance = random.Random(5)
        for _ in range(128):
            file.write(bytes(MIB))
        for _ in range(128):
            file.write(chance.randbytes(MIB // 16).translate(bytes(value % 7 for value in range(256))) * 16)


def make_b(root: Path, files: int = 60_000, folders: int = 600, largest: int = 32 << 10) -> None:
    """Small files of 1 KiB to ``largest``, small ones more often: half rows, a quarter prose, a quarter random."""
    root.mkdir(parents=True)
    chance = random.Random(6)
    dumped = b"".join(rows(chance, 4 * MIB))
    prose = b" ".join(chance.choices(WORDS, k=700_000))
    for number in range(folders):
        (root / f"{number % 25:02}" / f"{number:04}").mkdir(parents=True)
    for number in range(files):
        size = int(1024 * (largest / 1024) ** chance.random())
        kind = number % 4
        if kind == 3:
            content = chance.randbytes(size)
        else:
            text = prose if kind == 2 else dumped
            at = chance.randrange(len(text) - size)
            content = b"%d\n" % number + text[at : at + size - 8]
        folder = number * folders // files
        (root / f"{folder % 25:02}" / f"{folder:04}" / f"file-{number:06}.dat").write_bytes(content)


def make_d(root: Path) -> None:
    """200,000 files of some hundred bytes in 2,000 folders."""
    make_b(root, 200_000, 2_000, 2 << 10)


def change(a: Path, b: Path) -> None:
    """About 1 %: 10 MiB put into two of the dumps and onto their ends, and 600 small files written anew."""
    chance = random.Random(7)
    for number in (1, 2):
        path = a / f"dump-{number}.sql"
        content = path.read_bytes()
        new = b"".join(rows(chance, 5 * MIB))
        middle = chance.randrange(len(content))
        path.write_bytes(content[:middle] + new + content[middle:] + b"".join(rows(chance, 5 * MIB)))
    for path in chance.sample(sorted(path for path in b.rglob("*.dat")), 600):
        path.write_bytes(chance.randbytes(2048) + path.read_bytes())


def _dump(path: Path, size: int, seed: int) -> None:
    chance = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(size // (4 * MIB)):
            file.write(b"".join(rows(chance, 4 * MIB))[: 4 * MIB])


def rows(chance: random.Random, size: int) -> Iterator[bytes]:
    """Rows of a dumped table, about ``size`` bytes of them."""
    number = chance.randrange(10**6)
    done = 0
    while done < size:
        drawn = chance.getrandbits(64)
        row = b"%d\t%016x\t%s %s\t%d.%02d\t2026-%02d-%02d %02d:%02d:%02d+00\t%s\t%s@example.org\t\\N\n" % (
            number, drawn, WORDS[drawn % 28], WORDS[(drawn >> 5) % 28], drawn >> 44 & 0xFFFF, drawn % 100,
            drawn % 12 + 1, drawn % 28 + 1, drawn % 24, drawn >> 8 & 31, drawn >> 16 & 31,
            STATES[drawn % 5], WORDS[(drawn >> 10) % 28],
        )  # fmt: skip
        number += 1 + (drawn & 3)
        done += len(row)
        yield row
