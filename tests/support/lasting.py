"""What a long campaign has shown so far, a line for each result, so that one that was ended goes on from there."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("COSMOS_SOAK_RESULTS", "data/results"))
PIECE_S = float(os.environ.get("COSMOS_SOAK_SECONDS", "inf"))
"""A campaign begins nothing new after so many seconds."""


class Results:
    """The file ``<name>.ndjson`` of the results' folder. A line that a kill has cut short does not count."""

    def __init__(self, name: str) -> None:
        self._path, self._until = FOLDER / f"{name}.ndjson", time.monotonic() + PIECE_S
        self.rows: list[dict[str, Any]] = []
        """In the order in which they came."""
        for line in self._path.read_text("utf-8").splitlines() if self._path.exists() else ():
            try:
                self.rows.append(json.loads(line))
            except ValueError:
                continue

    def goes_on(self) -> bool:
        """Whether there is time for one more."""
        return time.monotonic() < self._until

    def add(self, **row: Any) -> None:
        """One more result, on disk and on standard output."""
        self.rows.append(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * (file.tell() > 0 and self._path.read_bytes()[-1:] != b"\n") + json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
