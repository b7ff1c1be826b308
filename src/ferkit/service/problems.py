"""Errors as problem details (RFC 9457, ``application/problem+json``)."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ferkit.core.errors import FerkitError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818  # the word of RFC 9457
    """An error with an HTTP status.

    ``retry_after`` are seconds after which a new attempt makes sense; ``reason`` is a short name for the
    metrics of refusals.
    """

    def __init__(
        self, status: int, detail: str, *, retry_after: int | None = None, reason: str = "request"
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after = retry_after
        self.reason = reason


class ProblemDetails(BaseModel):
    """Error in the format of RFC 9457."""

    type: str = Field("about:blank", description="Always about:blank: the status says the kind.")
    title: str = Field(description="Name of the HTTP status.", examples=["Unprocessable Entity"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(
        description="What was received, what was expected, and what to do; as on the command line.",
        examples=["the picture is no picture of a known format; known are JPEG, PNG, WebP, TIFF, BMP, GIF"],
    )
    request_id: str | None = Field(None, description="Also in the header X-Request-Id and in the log.")


_TITLES = {
    413: "Content Too Large",
    422: "Unprocessable Content",
}


def problem_response(
    status: int, detail: str, request_id: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error response."""
    try:
        title = _TITLES.get(status) or http.HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    details = ProblemDetails(
        type="about:blank", title=title, status=status, detail=detail, request_id=request_id
    )
    content = details.model_dump_json()
    return Response(content, status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the entries of the OpenAPI document for these errors; 400, 401, 403, 405 and 421 included."""
    reference = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {
        status: {
            "description": _TITLES.get(status) or http.HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: reference},
        }
        for status in sorted({400, 401, 403, 405, 421, *statuses})
    }


def install_handlers(app: FastAPI, count_refusal: Any) -> None:
    """Make every error of an application a problem document.

    ``count_refusal`` is called with the reason of each refused request.
    """

    def request_id(request: Request) -> str | None:
        return request.scope.get("ferkit.id")

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        count_refusal(error.reason)
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return problem_response(error.status, error.detail, request_id(request), headers)

    async def refused(request: Request, error: Exception) -> Response:
        count_refusal("content")
        return problem_response(422, " ".join(str(error).split()), request_id(request))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        count_refusal("parameters")
        first = error.errors()[0]
        name = str(first["loc"][-1])
        detail = f"{name}: {first['msg']}. Received: {str(first.get('input'))[:80]!r}"
        return problem_response(422, detail, request_id(request))

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_response(error.status_code, str(error.detail), request_id(request), error.headers)

    async def unexpected(request: Request, _: Exception) -> Response:
        return problem_response(500, "an error of the server; its log has the details", request_id(request))

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(FerkitError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unexpected)
