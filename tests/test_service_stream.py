"""The WebSocket of a webcam."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ferkit import Recognizer
from ferkit.detect import Detection
from ferkit.service.engine import Live
from ferkit.service.problems import Problem
from modelzoo import write_tiny_model
from servers import encoded, plain, portrait, running, settings_for, wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture
def served(model: Path, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    settings = settings_for(
        tmp_path, model=str(model), detector="none", streams=1, frame_mib=0.1, stream_idle_seconds=1
    )
    with running(settings) as running_service:
        yield running_service


def stream(url: str, query: str = "", **given: Any) -> ClientConnection:
    return connect(f"{url.replace('http', 'ws')}/v1/stream{query}", compression=None, proxy=None, **given)


def ask(line: ClientConnection, frame: bytes) -> dict[str, Any]:
    line.send(frame)
    answer: dict[str, Any] = json.loads(line.recv(30))
    return answer


def test_frames_are_tracked_and_numbered(served: tuple[str, Any]) -> None:
    with stream(served[0], "?taxonomy=ferplus") as line:
        answers = [ask(line, plain(64, 48, level)) for level in (100, 110, 120)]
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert {face["track"] for answer in answers for face in answer["faces"]} == {1}
    assert {answer["taxonomy"] for answer in answers} == {"ferplus"}
    assert (answers[0]["time"], answers[0]["duration"]) == (0, 0)
    assert 0 < answers[2]["time"] < 60


def test_expressions_are_smoothed_and_the_raw_ones_are_there(served: tuple[str, Any]) -> None:
    with stream(served[0]) as line:
        ask(line, plain(64, 48, 0))
        (face,) = ask(line, plain(64, 48, 255))["faces"]
    assert face["probabilities"] != face["raw"]["probabilities"]


def test_the_newest_frame_wins(served: tuple[str, Any]) -> None:
    url, _ = served
    with stream(url) as line:
        for _ in range(60):
            line.send(plain(300, 300))
        indices: list[int] = []
        while not indices or indices[-1] < 59:
            answer = json.loads(line.recv(30))
            indices.append(answer["index"])
    assert indices == sorted(indices)
    assert answer["dropped"] == 60 - len(indices)
    assert answer["dropped"] > 0


def test_an_unreadable_frame_is_told_and_the_stream_goes_on(served: tuple[str, Any]) -> None:
    with stream(served[0]) as line:
        assert "format" in ask(line, b"no picture")["error"]
        assert ask(line, plain())["index"] == 1


def closing(line: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        line.recv(30)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_there_are_only_so_many_places(served: tuple[str, Any]) -> None:
    url, service = served
    with stream(url) as first:
        ask(first, plain())
        with stream(url) as second:
            code, reason = closing(second)
            assert (code, "taken" in reason) == (1013, True)
    wait_until(lambda: service.metrics.streams._value.get() == 0)
    with stream(url) as third:
        assert ask(third, plain())["index"] == 0


@pytest.mark.parametrize(("sent", "code"), [("text", 1003), (b"x" * 200_000, 1009), (None, 1001)])
def test_a_client_that_does_not_send_frames_is_let_go(
    served: tuple[str, Any], sent: str | bytes | None, code: int
) -> None:
    with stream(served[0]) as line:
        if sent is not None:
            line.send(sent)
        assert closing(line)[0] == code


@pytest.mark.parametrize("query", ["?taxonomy=dogs", "?min_face=1"])
def test_a_wrong_option_closes_the_stream_with_the_reason(served: tuple[str, Any], query: str) -> None:
    with stream(served[0], query) as line:
        code, reason = closing(line)
    assert code == 1008
    assert query[1:].partition("=")[0].split("_")[0] in reason


def test_a_foreign_page_and_a_foreign_host_get_no_stream(served: tuple[str, Any]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        stream(served[0], origin="http://evil.example")
    assert refused.value.response.status_code == 403
    host, _, port = served[0].removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as line:
        with pytest.raises(InvalidStatus) as refused:
            stream("http://evil.example", sock=line)
        assert refused.value.response.status_code == 421


class Slow:
    """A detector that finds nothing, and does not return before it is let go."""

    name = "slow"

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def detect(self, _: Any) -> tuple[Detection, ...]:
        self.begun.set()
        assert self.go.wait(30)
        return ()


def test_a_frame_is_refused_while_another_is_classified(model: Path) -> None:
    slow = Slow()
    live = Live(Recognizer(model, detector=slow), 1_000_000)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(live.frame, plain(), 0, 0.0)
        assert slow.begun.wait(30)
        with pytest.raises(Problem, match="an earlier frame"):
            live.frame(plain(), 1, 0.1)
        slow.go.set()
        assert first.result(30)["index"] == 0
    assert live.frame(plain(), 2, 0.2)["index"] == 2


def test_the_key_can_come_as_a_subprotocol(model: Path, tmp_path: Path) -> None:
    key = "correct horse battery"
    name = "ferkit.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
    with running(settings_for(tmp_path, model=str(model), detector="none", api_key=key)) as (url, _):
        with pytest.raises(InvalidStatus):
            stream(url, subprotocols=["ferkit.stream"])
        with stream(url, subprotocols=["ferkit.stream", name]) as line:
            assert line.subprotocol == "ferkit.stream"
            assert ask(line, plain())["index"] == 0


def test_a_face_is_followed_with_the_default_detector(tmp_path: Path) -> None:
    with running(settings_for(tmp_path)) as (url, _), stream(url) as line:
        face = portrait()
        answers = [ask(line, encoded(face.transform(face.size, 0, (1, 0, -k, 0, 1, 0)))) for k in range(4)]
    assert [[f["track"] for f in answer["faces"]] for answer in answers] == [[1]] * 4
