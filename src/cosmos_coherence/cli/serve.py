"""``cosmos serve``."""

from __future__ import annotations

from pathlib import Path

from cosmos_coherence import errors

_PORTS = {"api": 8000, "dashboard": 8050}


def serve(what: str, *, host: str, port: int | None, reload: bool) -> int:
    """Run one of the long-lived parts until it is told to stop."""
    if what == "agent":
        from cosmos_coherence.cli import agent

        return agent.serve()
    if what not in _PORTS:
        raise errors.UsageError(f"there is nothing to serve by the name {what}", remedy="api, dashboard or agent.")
    try:
        import uvicorn
    except ImportError as error:
        raise errors.ConfigurationError(
            "the web parts are not installed", remedy="pip install 'cosmos-coherence[serve]'"
        ) from error
    uvicorn.run(
        f"cosmos_coherence.{what}.app:from_environment",
        factory=True,
        host=host,
        port=port or _PORTS[what],
        reload=reload,
        reload_dirs=["src"] if reload and Path("src").is_dir() else None,
        timeout_graceful_shutdown=2,
        access_log=False,
    )
    return 0
