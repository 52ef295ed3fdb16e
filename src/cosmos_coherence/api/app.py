"""The HTTP application: health, metrics and the runs. Read-only; it answers on loopback only until there is a login."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from cosmos_coherence import errors
from cosmos_coherence.api import listing, metrics, probes
from cosmos_coherence.health import checks
from cosmos_coherence.health.checks import Health
from cosmos_coherence.history import database, measurements, runs
from cosmos_coherence.settings import ServeSettings, load_serve

HOSTS = ("localhost", "127.0.0.1", "api")
"""Names this service is asked under. Others are refused: a page of a stranger must not read it through its own name."""


def from_environment() -> FastAPI:
    """The application of this process's environment, for ``uvicorn --factory``."""
    return create_app(load_serve())


def create_app(settings: ServeSettings) -> FastAPI:
    """The application. Nothing is connected yet: it starts, and answers, with the database and the cache down.

    ``ConfigurationError`` when the database is not named or its password cannot be read.
    """
    app = FastAPI(title="Cosmos Coherence", docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))
    engine = database.connect(settings)

    def ask() -> Health:
        return checks.run(probes.probes(settings, engine))

    @app.get("/health", response_class=JSONResponse)
    def health() -> Response:
        """Database, cache and disk. 503 when one of them fails."""
        found = ask()
        answer = _json(found, 503 if found.outcome == "fail" else 200)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """The numbers for Prometheus; while the history does not answer, only those of the checks and the disk."""
        found = ask()
        try:
            database.migrate(engine)
            counts, newest, measured = runs.counts(engine), runs.latest(engine), measurements.latest(engine)
            numbers = metrics.text(
                found, settings.data_directory, counts, newest, measured=measured, project=settings.project
            )
        except errors.CosmosError:
            numbers = metrics.text(found, settings.data_directory, (), ())
        return Response(numbers, media_type=CONTENT_TYPE_LATEST)

    @app.get("/runs", response_class=JSONResponse)
    def listed(limit: Annotated[int, Query(ge=1, le=200)] = 20) -> Response:
        """The newest runs; the last known list while the history does not answer."""
        return _json(listing.read(engine, settings.cache_directory, limit=limit))

    @app.get("/progress")
    def progress() -> dict[str, str]:
        """What the run under way last said of itself."""
        return {"progress": probes.progress(settings.redis_url)}

    @app.exception_handler(errors.CosmosError)
    def refused(_request: Request, error: errors.CosmosError) -> JSONResponse:
        body = {"code": error.code, "message": error.message, "remedy": error.remedy, "retryable": error.retryable}
        return JSONResponse(body, status_code=error.http_status)

    return app


def _json(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
