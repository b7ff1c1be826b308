"""The application: routes of photos, models, health and the page; clips and streams are beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from ferkit import __version__
from ferkit.service import schemas
from ferkit.service.engine import Engine, Options
from ferkit.service.jobs import Jobs
from ferkit.service.metrics import Metrics
from ferkit.service.pool import Pool
from ferkit.service.problems import Problem, ProblemDetails, documented, install_handlers
from ferkit.service.security import Gate
from ferkit.service.settings import MIB, Settings
from ferkit.service.uploads import read_photos

PAGE = Path(__file__).parent / "page"

_SUMMARY = (
    "Facial expression recognition over HTTP. Photos are classified at once, clips as jobs, webcam frames "
    "over a WebSocket (`/v1/stream`: JPEG frames in, JSON results out, the newest frame wins). ferkit "
    "predicts how people would have labelled a face, not what somebody feels. Errors are problem documents "
    "(RFC 9457)."
)

TaxonomyQuery = Annotated[
    str | None,
    Query(description="Id of the taxonomy; by default the model's.", max_length=64, examples=["basic"]),
]
MinFaceQuery = Annotated[
    int | None, Query(ge=5, le=10_000, description="Height in pixels of the smallest face wanted.")
]
TtaQuery = Annotated[Literal["none", "flip", "ten-crop"], Query(description="Test-time augmentation.")]


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes share."""

    settings: Settings
    metrics: Metrics
    engine: Engine
    pool: Pool
    jobs: Jobs


def service_of(request: Any) -> Service:
    """Return the service of a request or WebSocket."""
    service: Service = request.app.state.service
    return service


def client_of(request: Any) -> str:
    """Return the address of a client."""
    return request.client.host if request.client else ""


def _refuse_unknown_options(request: Request) -> None:
    """Refuse a query with an option that the route does not have; the page itself takes any."""
    if not request.url.path.startswith("/v1/"):
        return
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    if unknown := [name for name in request.query_params if name not in known]:
        there = f"it has {', '.join(known)}" if known else "it has none"
        raise Problem(422, f"{request.url.path} has no option {unknown[0]!r}; {there}")


router = APIRouter()

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["photo"],
                    "properties": {
                        "photo": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post(
    "/v1/predict",
    tags=["photos"],
    openapi_extra=_BODY,
    response_model=list[schemas.PhotoModel | schemas.UnreadablePhoto],
    responses={
        **documented(408, 413, 415, 422, 429, 503),
        200: {
            "description": "An object per photo, in order.",
            "content": {"application/json": {"example": schemas.PHOTO_EXAMPLE}},
        },
    },
)
async def predict(
    request: Request,
    taxonomy: TaxonomyQuery = None,
    min_face: MinFaceQuery = None,
    tta: TtaQuery = "none",
    explain: Annotated[bool, Query(description="Add an activation map (PNG) to every face.")] = False,
    annotated: Annotated[bool, Query(description="Add the photo with the faces drawn in.")] = False,
) -> Response:
    """Classify the faces of one or several photos (JPEG, PNG, WebP, TIFF, BMP, GIF), multipart or raw.

    The response is that of `ferkit predict --format json`. A photo without a face is no error. Of several
    photos, an unreadable one has only `source` and `error`; a single one is refused with 422. Photos are not
    stored.
    """
    service = service_of(request)
    settings = service.settings
    with service.pool.client(client_of(request)):
        service.pool.check()
        uploads = await read_photos(
            request,
            limit=int(settings.body_mib * MIB),
            photos=settings.photos,
            pause=settings.body_seconds,
        )

        def work(check: Callable[[], None]) -> tuple[bytes, int]:
            results = service.engine.predict(
                uploads,
                Options(taxonomy, min_face, tta),
                explain=explain,
                annotated=annotated,
                check=check,
            )
            faces = sum(len(result.get("faces", ())) for result in results)
            return json.dumps(results, allow_nan=False).encode(), faces

        content, faces = await service.pool.run("/v1/predict", work, settings.request_seconds)
    service.metrics.faces.labels("/v1/predict").inc(faces)
    return Response(content, media_type="application/json")


@router.get("/v1/models", tags=["server"], response_model=schemas.ModelsModel, responses=documented())
async def models(request: Request) -> dict[str, Any]:
    """Return the model with its taxonomies, the detector, the palette, and the limits of requests."""
    service = service_of(request)
    names = schemas.LimitsModel.model_fields
    return {
        **service.engine.models(),
        "limits": {name: getattr(service.settings, name) for name in names},
        "version": __version__,
    }


@router.get("/healthz", tags=["server"], response_model=schemas.HealthModel, responses=documented())
async def healthz() -> dict[str, str]:
    """Say that the server runs."""
    return {"status": "ok"}


@router.get("/readyz", tags=["server"], response_model=schemas.HealthModel, responses=documented(503))
async def readyz(request: Request) -> Response:
    """Say whether the server would take a request now; 503 if it is busy."""
    busy = service_of(request).pool.full
    return JSONResponse({"status": "busy" if busy else "ok"}, 503 if busy else 200)


@router.get(
    "/metrics",
    tags=["server"],
    responses={**documented(), 200: {"content": {"text/plain": {}}, "description": "Figures."}},
    response_class=Response,
)
async def metrics(request: Request) -> Response:
    """Return requests, latency, faces, queue and refusals in the text format of Prometheus."""
    return Response(
        service_of(request).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(PAGE / "index.html")


def create_app(settings: Settings) -> FastAPI:
    """Return the application.

    Raises:
        FerkitError: If the model or the detector cannot be opened, or the folder of jobs or the queue is out
            of reach.
    """
    from ferkit.service import stream, videos
    from ferkit.service.supervisor import Supervisor

    numbers = Metrics()
    pool = Pool(settings.threads, settings.waiting, settings.client_requests, numbers)
    service = Service(settings, numbers, Engine(settings), pool, Jobs(settings))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with Supervisor(service):
            yield
        await asyncio.to_thread(pool.close)

    app = FastAPI(
        title="ferkit",
        version=__version__,
        description=_SUMMARY,
        license_info={"name": "MIT (code); research use (weights)"},
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.streams = set()
    for part in (router, videos.router):
        app.include_router(part, dependencies=[Depends(_refuse_unknown_options)])
    app.include_router(stream.router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    install_handlers(app, lambda reason: numbers.refusals.labels(reason).inc())
    app.add_middleware(Gate, settings=settings, metrics=numbers)
    _complete_openapi(app, with_key=settings.api_key is not None)
    return app


def _complete_openapi(app: FastAPI, *, with_key: bool) -> None:
    """Add to the OpenAPI document what FastAPI does not know of: problem details and the API key."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        parts = document.setdefault("components", {})
        parts.setdefault("schemas", {})["ProblemDetails"] = ProblemDetails.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(name, None)
        if with_key:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
