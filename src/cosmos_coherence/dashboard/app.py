"""The dashboard: one page that needs no script, and a health address of its own."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, PlainTextResponse

from cosmos_coherence import errors
from cosmos_coherence.dashboard import page, source
from cosmos_coherence.settings import ServeSettings, load_serve

HOSTS = ("localhost", "127.0.0.1", "dashboard")
"""Names this service is asked under. Others are refused: a page of a stranger must not read it through its own name."""


def from_environment() -> FastAPI:
    """The application of this process's environment, for ``uvicorn --factory``."""
    return create_app(load_serve())


def create_app(settings: ServeSettings) -> FastAPI:
    """The application. It shows its page also while the API is held, stopped or broken."""
    app = FastAPI(title="Cosmos Coherence dashboard", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))

    @app.get("/")
    def shown() -> HTMLResponse:
        """The page."""
        live = True
        try:
            overview: source.Overview | None = source.ask(settings.api_url)
            if overview is not None:
                source.keep(settings.cache_directory, overview)
        except errors.ServiceDown:
            live, overview = False, source.kept(settings.cache_directory)
        return HTMLResponse(page.render(overview, live=live, now=datetime.now(UTC)), headers=dict(page.HEADERS))

    @app.get("/health", response_class=PlainTextResponse)
    def health() -> str:
        """That this service answers; it asks nobody else."""
        return "ok"

    return app
