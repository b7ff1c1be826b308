"""The service over HTTP: photos, errors, limits, security, figures."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import ferkit
from ferkit.core.errors import FerkitError
from ferkit.core.taxonomy import FERPLUS
from ferkit.service.security import JsonLines
from ferkit.service.server import listen
from ferkit.service.settings import Settings, load_settings
from modelzoo import write_tiny_model
from servers import encoded, plain, portrait, running, settings_for, wait_until

KEY = "correct horse battery"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """A service that takes each picture as one face, with small limits."""
    settings = settings_for(
        tmp_path_factory.mktemp("jobs"),
        model=str(model),
        detector="none",
        body_mib=1,
        clip_mib=1,
        photos=3,
        pixels=1_000_000,
        body_seconds=0.5,
        hosts=("faces.example",),
    )
    with running(settings) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def url(served: tuple[str, Any]) -> str:
    return served[0]


def predict(url: str, content: bytes, **query: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/predict", content=content, params=query, timeout=60)


def detail(response: httpx.Response, status: int) -> str:
    """The words of a problem document, after checking that it is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    return str(problem["detail"])


def test_a_photo_gives_what_the_python_interface_gives(url: str, model: Path) -> None:
    photo = plain()
    expected = ferkit.Recognizer(model, detector="none").predict(photo).to_dict()
    assert predict(url, photo).json() == [json.loads(json.dumps(expected))]


def test_several_photos_come_back_in_order_and_a_damaged_one_has_its_error(url: str) -> None:
    files = [("photo", ("../a.png", plain(40))), ("photo", ("b.png", b"no")), ("photo", ("c.png", plain(50)))]
    first, second, third = httpx.post(f"{url}/v1/predict", files=files).json()
    assert (first["source"], first["width"]) == ("a.png", 40)
    assert set(second) == {"source", "error"}
    assert (third["source"], third["width"]) == ("c.png", 50)


def test_a_picture_can_be_asked_for_with_faces_and_with_activation_maps(url: str) -> None:
    (photo,) = predict(url, plain(), explain=True, annotated=True).json()
    for text in (photo["annotated"], photo["faces"][0]["activation_map"]["png"]):
        picture = Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))
        assert picture.size in ((64, 48), (96, 96))


def test_a_photo_too_wide_for_an_annotated_jpeg_does_not_fail_the_others(model: Path, tmp_path: Path) -> None:
    wide = plain(70_000, 32)  # libjpeg: 65,500
    files = [("photo", ("a.png", plain(40))), ("photo", ("b.png", wide))]
    with running(settings_for(tmp_path, model=str(model))) as (url, _):
        answer = httpx.post(f"{url}/v1/predict", files=files, params={"annotated": True}, timeout=60)
        first, second = answer.json()
        assert first["annotated"].startswith("data:image/jpeg")
        assert set(second) == {"source", "error"}
        assert "65,500 pixels" in second["error"]
        assert "65,500 pixels" in detail(predict(url, wide, annotated=True), 422)


def test_the_taxonomy_can_be_chosen(url: str) -> None:
    (photo,) = predict(url, plain(), taxonomy="ferplus").json()
    assert tuple(photo["faces"][0]["probabilities"]) == FERPLUS.labels


def test_an_error_has_the_words_of_the_command_line(url: str, model: Path) -> None:
    with pytest.raises(FerkitError) as unknown:
        ferkit.Recognizer(model, detector="none", taxonomy="dogs")
    assert detail(predict(url, plain(), taxonomy="dogs"), 422) == " ".join(str(unknown.value).split())
    with pytest.raises(FerkitError) as unreadable:
        ferkit.Recognizer(model, detector="none").predict(b"hello")
    assert detail(predict(url, b"hello"), 422) == str(unreadable.value)


def png_header(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(head))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", len(body))
        + b"IDAT"
        + body
        + struct.pack(">I", zlib.crc32(b"IDAT" + body))
        + b"\0\0\0\0IEND\xaeB`\x82"
    )


def animated() -> bytes:
    frames = [Image.new("RGB", (60, 50), (level, 0, 0)) for level in (0, 90, 180)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


HOSTILE = {
    "a bomb of 30,000 x 30,000 pixels": (png_header(30_000, 30_000), 422),
    "a header that promises more than the file": (png_header(999, 1000), 422),
    "30,000 pixels wide, one high": (encoded(Image.new("L", (30_000, 1)), "PNG"), 200),
    "one pixel": (plain(1, 1), 200),
    "cut off": (encoded(Image.effect_noise((300, 300), 90))[:2000], 422),
    "an animation": (animated(), 200),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 422),
    "HTML": (b"<!doctype html><script>alert(1)</script>", 422),
    "a picture with HTML behind it": (plain() + b"<script>alert(1)</script>", 200),
    "a picture with a zip behind it": (plain() + b"PK\x03\x04" + b"\0" * 100, 200),
    "HTML with a picture behind it": (b"<html>" + plain(), 422),
    "nothing": (b"", 422),
    "zeros": (b"\0" * 5000, 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_refused_or_read_and_is_never_an_error_of_the_server(
    url: str, name: str
) -> None:
    content, status = HOSTILE[name]
    response = predict(url, content)
    assert response.status_code == status, response.text
    if status != 200:
        assert detail(response, status)
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(url: str) -> None:
    assert "1 MiB" in detail(predict(url, b"x" * (1 << 20 | 1)), 413)

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 100_000

    assert "1 MiB" in detail(httpx.post(f"{url}/v1/predict", content=chunks()), 413)


def test_too_many_photos_are_refused(url: str) -> None:
    files = [("photo", (f"{k}.png", plain())) for k in range(4)]
    assert "3 files" in detail(httpx.post(f"{url}/v1/predict", files=files), 413)


FIELD = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("multipart/form-data", b"--x\r\n", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=a; file", 400),
        ("multipart/form-data; boundary=x", b"no boundary at all", 400),
        ("multipart/form-data; boundary=x", FIELD, 422),
        ("multipart/mixed; boundary=x", b"--x--", 400),
        ("application/x-www-form-urlencoded", b"a=1", 415),
    ],
)  # fmt: skip
def test_a_damaged_form_is_refused(url: str, content_type: str, content: bytes, status: int) -> None:
    response = httpx.post(f"{url}/v1/predict", content=content, headers={"Content-Type": content_type})
    assert detail(response, status)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("min_face=4", "min_face"),
        ("tta=twice", "tta"),
        ("explain=perhaps", "explain"),
        ("explian=true", "/v1/predict has no option 'explian'; it has taxonomy, "),
    ],
)
def test_a_parameter_out_of_range_is_named(url: str, query: str, word: str) -> None:
    assert word in detail(httpx.post(f"{url}/v1/predict?{query}", content=plain()), 422)


def test_a_route_without_options_refuses_any_and_the_page_none(url: str) -> None:
    assert detail(httpx.get(f"{url}/v1/models?full=1"), 422) == "/v1/models has no option 'full'; it has none"
    assert httpx.get(f"{url}/?full=1").status_code == 200


def raw(url: str, text: bytes) -> bytes:
    """What comes back for bytes on the line, until the server closes or is silent."""
    host, _, port = url.removeprefix("http://").partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(text)
        while part := line.recv(65536):
            answer += part
            if b"\r\n\r\n" in answer and b"connection: close" in answer.lower():
                break
    return answer


def test_a_body_that_stops_arriving_is_given_up(url: str) -> None:
    head = (
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 99\r\n\r\nabc"
    )
    assert b" 408 " in raw(url, head)


def test_a_connection_without_a_complete_header_is_closed(url: str) -> None:
    assert raw(url, b"GET / HTTP/1.1\r\nHost: loc") == b""


def test_a_later_request_without_a_complete_header_is_closed(url: str) -> None:
    answer = raw(url, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: loc")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_responses_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    with listen(settings_for(tmp_path)) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # asyncio's condition for TCP_NODELAY


def test_a_huge_header_is_refused(url: str) -> None:
    assert b" 400 " in raw(url, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 100_000)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"]
)
def test_a_foreign_host_name_is_refused(url: str, host: str) -> None:
    assert detail(httpx.get(f"{url}/v1/models", headers={"Host": host}), 421)


@pytest.mark.parametrize(
    "host", ["localhost:1234", "127.0.0.1", "[::1]:80", "192.168.1.7:8000", "faces.example"]
)
def test_the_own_names_and_addresses_are_accepted(url: str, host: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://"])
def test_a_page_of_another_origin_is_refused(url: str, origin: str) -> None:
    response = httpx.post(f"{url}/v1/predict", content=plain(), headers={"Origin": origin})
    assert detail(response, 403)
    assert "access-control-allow-origin" not in response.headers


def test_the_own_page_is_accepted_and_a_cross_site_request_is_not(url: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"Origin": url}).status_code == 200
    assert detail(httpx.get(f"{url}/v1/models", headers={"Sec-Fetch-Site": "cross-site"}), 403)


def test_every_response_has_the_security_headers(url: str) -> None:
    for path in ("/", "/page/app.js", "/v1/models", "/nothing"):
        headers = httpx.get(url + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_a_request_id_of_the_client_is_kept_if_it_is_plain(url: str) -> None:
    assert httpx.get(url, headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert httpx.get(url, headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


def test_the_api_key_is_demanded_everywhere_but_for_page_and_health(model: Path, tmp_path: Path) -> None:
    with running(settings_for(tmp_path, model=str(model), detector="none", api_key=KEY)) as (url, _):
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert httpx.get(url + path).status_code == 200
        for path in ("/v1/models", "/metrics"):
            assert detail(httpx.get(url + path), 401)
            assert detail(httpx.get(url + path, headers={"X-API-Key": KEY + "x"}), 401)
            assert httpx.get(url + path, headers={"X-API-Key": KEY}).status_code == 200
            assert httpx.get(url + path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


class Slow:
    """An engine whose photos take until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def predict(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        self.go.wait(30)
        return []


def post_in_threads(url: str, count: int) -> tuple[list[httpx.Response], list[threading.Thread]]:
    responses: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: responses.append(predict(url, plain()))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return responses, threads


def test_work_beyond_the_queue_gets_503_and_the_rest_is_done(model: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, model=str(model), detector="none", workers=1, waiting=1)
    with running(settings) as (url, service):
        slow = Slow()
        service.engine.predict = slow.predict
        responses, threads = post_in_threads(url, 3)
        refused = wait_until(lambda: responses)[0]
        assert detail(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert httpx.get(f"{url}/healthz").status_code == 200
        slow.go.set()
        for thread in threads:
            thread.join()
        assert sorted(r.status_code for r in responses) == [200, 200, 503]
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)


def test_a_client_with_too_many_requests_gets_429(model: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, model=str(model), detector="none", client_requests=1)
    with running(settings) as (url, service):
        slow = Slow()
        service.engine.predict = slow.predict
        responses, threads = post_in_threads(url, 2)
        assert detail(wait_until(lambda: responses)[0], 429)
        slow.go.set()
        for thread in threads:
            thread.join()
        assert sorted(r.status_code for r in responses) == [200, 429]


def test_a_request_that_takes_too_long_gets_503_and_keeps_its_thread(model: Path, tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, model=str(model), detector="none", workers=1, waiting=0, request_seconds=0.2
    )
    with running(settings) as (url, service):
        slow = Slow()
        service.engine.predict = slow.predict
        assert "0.2 seconds" in detail(predict(url, plain()), 503)
        assert "busy" in detail(predict(url, plain()), 503)
        slow.go.set()


def test_a_stopped_server_finishes_what_is_in_flight(model: Path, tmp_path: Path) -> None:
    slow = Slow()
    with running(settings_for(tmp_path, model=str(model), detector="none")) as (url, service):
        service.engine.predict = slow.predict
        responses, (thread,) = post_in_threads(url, 1)
        wait_until(lambda: service.metrics.computing._value.get() == 1)
        threading.Timer(0.3, slow.go.set).start()
    thread.join()
    assert responses[0].status_code == 200


def test_more_faces_than_allowed_are_refused(tmp_path: Path) -> None:
    picture = Image.new("RGB", (1024, 512))
    for left in (0, 512):
        picture.paste(portrait(), (left, 0))
    with running(settings_for(tmp_path, faces=1)) as (url, _):
        (photo,) = predict(url, encoded(portrait())).json()
        assert photo["faces"][0]["label"] == "happy"
        assert "2 faces" in detail(predict(url, encoded(picture)), 422)


def test_the_figures_count_requests_faces_and_refusals(served: tuple[str, Any]) -> None:
    url, _ = served
    before = figures(url)
    predict(url, plain())
    predict(url, b"no picture")
    after = figures(url)
    changed = {name for name in after if after[name] != before.get(name)}
    assert 'ferkit_requests_total{method="POST",route="/v1/predict",status="200"}' in changed
    assert 'ferkit_refusals_total{reason="content"}' in changed
    assert 'ferkit_faces_total{route="/v1/predict"}' in changed


def figures(url: str) -> dict[str, str]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_models_tell_labels_palette_and_limits(url: str) -> None:
    document = httpx.get(f"{url}/v1/models").json()
    (model,) = document["models"]
    labels = {label for taxonomy in model["taxonomies"] for label in taxonomy["labels"]}
    assert labels | {"uncertain"} <= set(document["palette"])
    assert document["limits"]["photos"] == 3


def test_a_flag_outranks_the_environment_which_outranks_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('photos = 5\nstreams = 6\nhosts = ["a.example"]\nfaces = 7\n')
    monkeypatch.setenv("FERKIT_CONFIG", "")
    monkeypatch.setenv("FERKIT_STREAMS", "8")
    monkeypatch.setenv("FERKIT_FACES", "9")
    settings = load_settings(file, faces=10)
    assert (settings.photos, settings.streams, settings.faces) == (5, 8, 10)
    assert settings.hosts == ("a.example",)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"host": "0.0.0.0"}, "API key"),
        ({"port": 70_000}, "port"),
        ({"queue": "amqp://x"}, "redis"),
        ({"api_key": "short"}, "8 characters"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], word: str) -> None:
    with pytest.raises(FerkitError, match=word):
        load_settings(**given)


def test_a_wrong_queue_is_named_without_its_password() -> None:
    with pytest.raises(FerkitError, match="setting queue") as error:
        load_settings(queue="http://someone:secret@127.0.0.1")
    assert "secret" not in str(error.value)


def test_log_lines_carry_the_time_in_utc() -> None:
    record = logging.makeLogRecord({"msg": "request", "created": 1.5, "fields": {"status": 200}})
    line = json.loads(JsonLines().format(record))
    assert line["time"] == "1970-01-01T00:00:01.500+00:00"
    assert (line["event"], line["status"]) == ("request", 200)


def test_the_loopback_and_a_key_need_no_permission() -> None:
    for given in (
        {},
        {"host": "::1"},
        {"host": "0.0.0.0", "api_key": KEY},
        {"host": "0.0.0.0", "insecure": True},
    ):
        assert load_settings(**given).host


def test_every_setting_is_explained_in_the_page_of_the_service() -> None:
    text = (Path(__file__).parents[1] / "docs" / "service.md").read_text()
    assert [name for name in Settings.model_fields if f"`{name}`" not in text] == []
