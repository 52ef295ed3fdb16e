"""A real HTTP server that is told of alarms and pinged: it takes, refuses, or hangs, as the path says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Listener:
    """``got`` holds every request as (method, path, what was in it)."""

    port: int
    got: list[tuple[str, str, Any]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Paths that answer 500 for now."""
    hung: threading.Event = field(default_factory=threading.Event)
    """Set when whoever hangs is to be let go."""

    def titles(self, path: str = "/take") -> list[str]:
        """The titles of the messages that came that way and were taken."""
        return [said["title"] for _, where, said in self.got if where == path and isinstance(said, dict)]

    def url(self, path: str, scheme: str = "json") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"


@contextlib.contextmanager
def listening() -> Iterator[Listener]:
    """One, while it is needed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._take(None)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._take(json.loads(content))

        def _take(self, said: Any) -> None:
            path = self.path
            if path.startswith("/hang"):
                found.hung.wait(30)
                return
            bad = path in found.broken or path.startswith("/refuse")
            if not bad:
                found.got.append((self.command, path, said))
            with contextlib.suppress(OSError):
                self.send_response(500 if bad else 200)
                self.end_headers()
                self.wfile.write(b"the secret of the server")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Listener(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        found.hung.set()
        server.shutdown()
        thread.join()
        server.server_close()
