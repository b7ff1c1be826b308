"""Routes of clips: a clip becomes a job, whose state and results can be fetched until they expire."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from ferkit.service import schemas
from ferkit.service.app import MinFaceQuery, Service, TaxonomyQuery, TtaQuery, client_of, service_of
from ferkit.service.engine import Options
from ferkit.service.jobs import FINISHED, RESULTS, Job, QueueError
from ferkit.service.problems import Problem, documented
from ferkit.service.settings import MIB
from ferkit.service.uploads import read_clip

router = APIRouter(tags=["clips"])

_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["clip"], "properties": {"clip": _FILE}}
            },
            "video/mp4": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
        },
    }
}
_EXAMPLE = {"application/json": {"example": schemas.JOB_EXAMPLE}}
JobId = Annotated[
    str, Path(pattern="^[0-9a-f]{32}$", description="Id of the job.", examples=[schemas.JOB_EXAMPLE["id"]])
]


def _document(service: Service, job: Job) -> dict[str, Any]:
    """Return a job as clients see it."""
    folder = service.jobs.folder(job.id)
    results = {}
    if job.state == "done":
        results = {
            name: f"/v1/videos/{job.id}/{name}"
            for name, (file, _) in RESULTS.items()
            if (folder / file).exists()
        }
    expires = None if job.finished is None else job.finished + service.settings.job_hours * 3600
    fields = job.model_dump(include=set(schemas.JobModel.model_fields))
    return {**fields, "expires": expires, "results": results}


async def _job(service: Service, job_id: str) -> Job:
    job = await asyncio.to_thread(service.jobs.get, job_id)
    if job is None:
        raise Problem(404, f"there is no job {job_id}; it may have expired", reason="job")
    return job


@router.post(
    "/v1/videos",
    status_code=202,
    openapi_extra=_BODY,
    response_model=schemas.JobModel,
    responses={
        **documented(408, 413, 415, 422, 429, 503),
        202: {
            "description": "The job is queued.",
            "content": _EXAMPLE,
            "headers": {"Location": {"description": "Path of the job.", "schema": {"type": "string"}}},
        },
    },
)
async def submit(
    request: Request,
    taxonomy: TaxonomyQuery = None,
    min_face: MinFaceQuery = None,
    tta: TtaQuery = "none",
    fps: Annotated[
        float | None, Query(gt=0, le=1000, description="Read at most so many frames a second.")
    ] = None,
    annotated: Annotated[bool, Query(description="Write the clip with the faces drawn in.")] = True,
) -> Response:
    """Queue a clip (MP4, MOV, MKV, WebM, AVI, or what else FFmpeg reads), multipart or as raw body.

    The clip itself is removed when the job ends; the results expire.
    """
    service = service_of(request)
    jobs, settings = service.jobs, service.settings
    with service.pool.client(client_of(request)):
        # An option that the model does not have is refused now, not by the job.
        await service.pool.run(
            "/v1/videos",
            lambda _: service.engine.recognizer(Options(taxonomy, min_face, tta)),
            settings.request_seconds,
        )
        counts = await asyncio.to_thread(jobs.counts)
        if counts["queued"] > settings.jobs_waiting:
            raise Problem(
                503, f"{counts['queued']} jobs wait already; try again later", retry_after=30, reason="jobs"
            )
        folder = await asyncio.to_thread(jobs.new)
        job = Job(id=folder.name, taxonomy=taxonomy, min_face=min_face, tta=tta, fps=fps, annotated=annotated)
        submitted = False
        try:
            job.name = await read_clip(
                request,
                jobs.clip(job.id),
                limit=int(settings.clip_mib * MIB),
                pause=settings.body_seconds,
            )
            await asyncio.to_thread(jobs.submit, job)
            submitted = True
        except QueueError as error:
            raise Problem(503, f"{error}; try again later", retry_after=30, reason="queue") from error
        finally:
            if not submitted:
                jobs.drop(folder)
    return JSONResponse(
        _document(service, job), 202, headers={"Location": f"/v1/videos/{job.id}", "Retry-After": "1"}
    )


@router.get(
    "/v1/videos/{job_id}",
    response_model=schemas.JobModel,
    responses={**documented(404, 422), 200: {"description": "The job.", "content": _EXAMPLE}},
)
async def state(request: Request, job_id: JobId) -> dict[str, Any]:
    """Return the state and the progress of a job."""
    service = service_of(request)
    return _document(service, await _job(service, job_id))


@router.post("/v1/videos/{job_id}/cancel", response_model=schemas.JobModel, responses=documented(404, 422))
async def cancel(request: Request, job_id: JobId) -> dict[str, Any]:
    """Cancel a job: one that waits at once, one that runs at its next frame. A finished one stays."""
    service = service_of(request)
    await _job(service, job_id)
    job = await asyncio.to_thread(service.jobs.cancel, job_id)
    if job is None:
        raise Problem(404, f"there is no job {job_id}; it may have expired", reason="job")
    return _document(service, job)


@router.delete("/v1/videos/{job_id}", status_code=204, responses=documented(404, 422))
async def delete(request: Request, job_id: JobId) -> Response:
    """Delete a job with its results; one that runs is cancelled."""
    if not await asyncio.to_thread(service_of(request).jobs.delete, job_id):
        raise Problem(404, f"there is no job {job_id}; it may have expired", reason="job")
    return Response(status_code=204)


@router.get(
    "/v1/videos/{job_id}/live",
    response_class=Response,
    responses={
        **documented(404, 422),
        200: {
            "description": "Complete lines from the offset on; empty if there are none yet.",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            "headers": {
                "X-Next-Offset": {"description": "Offset to continue at.", "schema": {"type": "integer"}}
            },
        },
    },
)
async def live(
    request: Request,
    job_id: JobId,
    offset: Annotated[int, Query(ge=0, le=1 << 40, description="Bytes that are known already.")] = 0,
) -> Response:
    """Return the frames that are done so far, as JSON lines, while the job still runs."""
    service = service_of(request)
    await _job(service, job_id)
    content = await asyncio.to_thread(service.jobs.live_frames, job_id, offset)
    return Response(
        content,
        media_type="application/x-ndjson",
        headers={"X-Next-Offset": str(offset + len(content))},
    )


@router.get(
    "/v1/videos/{job_id}/{result}",
    response_class=FileResponse,
    responses={
        **documented(404, 409, 422),
        200: {
            "description": "The result.",
            "content": {kind.partition(";")[0]: {"schema": _FILE} for _, kind in RESULTS.values()},
        },
    },
)
async def result(
    request: Request,
    job_id: JobId,
    result: Annotated[Literal["jsonl", "csv", "timeline", "annotated"], Path(description="Which result.")],
) -> FileResponse:
    """Return a result of a job that is done: frames as JSON lines or CSV, timeline, annotated clip."""
    service = service_of(request)
    job = await _job(service, job_id)
    if job.state not in FINISHED:
        raise Problem(409, f"job {job_id} is {job.state}; its results come when it is done", reason="job")
    file, kind = RESULTS[result]
    path = service.jobs.folder(job_id) / file
    if job.state != "done" or not path.exists():
        why = " (timelines need the extra plot)" if result == "timeline" and job.state == "done" else ""
        raise Problem(404, f"job {job_id} is {job.state} and has no result {result!r}{why}", reason="job")
    stem = (job.name or "clip").rpartition(".")[0] or "clip"
    return FileResponse(
        path, media_type=kind, filename=f"{stem}-{file}", content_disposition_type="attachment"
    )
