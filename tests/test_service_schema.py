"""The OpenAPI document: complete, with examples, and kept by the service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from modelzoo import write_tiny_model
from servers import running, settings_for

EXAMPLES = 12


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    model = write_tiny_model(folder / "tiny.onnx")
    chosen = settings_for(folder / "jobs", model=str(model), detector="none", jobs_waiting=1000)
    with running(chosen) as (address, _):
        yield address


OPERATIONS = [
    ("POST", "/v1/predict"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos/{job_id}"),
    ("DELETE", "/v1/videos/{job_id}"),
    ("POST", "/v1/videos/{job_id}/cancel"),
    ("GET", "/v1/videos/{job_id}/live"),
    ("GET", "/v1/videos/{job_id}/{result}"),
    ("GET", "/v1/models"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


def test_the_document_has_these_operations(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, item in paths.items() for method in item} == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_service_keeps_its_document(url: str, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{url}/openapi.json")[path][method]

    @given(case=operation.as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case: Any) -> None:
        # A body that fits the document can still be no picture, which is refused with 422.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()


def test_every_operation_has_errors_as_problem_documents_and_an_example(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    for path, operations in document["paths"].items():
        for name, operation in operations.items():
            problems = {s: r for s, r in operation["responses"].items() if s.startswith("4")}
            assert problems, (path, name)
            for response in problems.values():
                assert set(response["content"]) == {"application/problem+json"}, (path, name)
    for path, name, status in (("/v1/predict", "post", "200"), ("/v1/videos", "post", "202")):
        assert document["paths"][path][name]["responses"][status]["content"]["application/json"]["example"]
