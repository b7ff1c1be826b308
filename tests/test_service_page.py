"""The page in a real browser: photos, clip, webcam, errors, accessibility."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from clips import write_clip
from ferkit.core.taxonomy import BASIC
from ferkit.recognize.results import photo_columns
from ferkit.video.recognition import frame_columns
from servers import Process, portrait, running, settings_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
)
PATIENCE = 60_000  # ms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="CHROMIUM ABSENT: install the system's package chromium"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Process(tmp_path_factory.mktemp("jobs"))
    yield server.url
    server.stop()


def write_camera(path: Path, frames: Iterator[np.ndarray]) -> Path:
    """Write RGB frames of 640 x 480 as YUV4MPEG, which Chromium plays as a camera."""
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F15:1 Ip A1:1 C420jpeg\n")
        for rgb in frames:
            planes = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p").to_ndarray()
            file.write(b"FRAME\n" + planes.tobytes())
    return path


def moving_portrait(count: int) -> Iterator[np.ndarray]:
    """A face that moves sideways: uint8 [480, 640, 3]."""
    face = portrait().resize((420, 420))
    for k in range(count):
        picture = Image.new("RGB", (640, 480), (60, 70, 80))
        picture.paste(face, (60 + 4 * k, 30))
        yield np.asarray(picture)


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m", moving_portrait(20))


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@contextlib.contextmanager
def launch(playwright: Playwright, camera: Path) -> Iterator[Browser]:
    """Chromium with a file as its camera."""
    arguments = [*ARGUMENTS, f"--use-file-for-fake-video-capture={camera}"]
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def browser(playwright: Playwright, camera: Path) -> Iterator[Browser]:
    with launch(playwright, camera) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, ready; at the end the console must be without an error."""
    with browser.new_context(accept_downloads=True, viewport={"width": 1280, "height": 900}) as context:
        context.grant_permissions(["camera"], origin=url)
        opened, faults = open_page(context, url)
        yield opened
        assert faults == []


def open_page(context: Any, url: str) -> tuple[Page, list[str]]:
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    faults: list[str] = []
    opened.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(url)
    opened.wait_for_selector("html[data-ready]")
    return opened, faults


def jpeg(path: Path, picture: Image.Image) -> Path:
    picture.save(path, quality=92)
    return path


def check_access(page: Page) -> None:
    """No serious fault by axe-core. Its script is put in by the browser, past the page's policy."""
    response = Axe().run(page).response
    assert len(response["passes"]) > 10
    found = response["violations"]
    serious = [
        f"{fault['id']}: {fault['nodes'][0]['html']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text())))


def test_a_photo_shows_box_bars_and_downloads(page: Page, tmp_path: Path) -> None:
    check_access(page)
    page.set_input_files("#file-photos", jpeg(tmp_path / "portrait.jpg", portrait()))
    expect(page.locator(".face")).to_have_count(1)
    expect(page.locator("#leading")).to_have_text("happy")
    assert page.locator("#bars li").count() == len(BASIC.labels)
    check_access(page)

    with page.expect_download() as waiting:
        page.click("#save-json")
    (photo,) = json.loads(Path(waiting.value.path()).read_text())
    assert photo["faces"][0]["label"] == "happy"
    with page.expect_download() as waiting:
        page.click("#save-csv")
    rows = read_csv(waiting.value.path())
    assert list(rows[0]) == photo_columns(BASIC.labels)
    assert float(rows[0]["left_eye_x"]) == photo["faces"][0]["landmarks"]["left_eye"][0]
    assert float(rows[0]["p_surprise"]) == photo["faces"][0]["probabilities"]["surprise"]
    assert [(row["source"], row["label"]) for row in rows] == [("portrait.jpg", "happy")]
    with page.expect_download() as waiting:
        page.click("#save-png")
    with Image.open(waiting.value.path()) as saved:
        assert saved.size == portrait().size

    page.click("#explain")
    expect(page.locator("#heat")).to_be_visible()
    page.select_option("#taxonomy", "fer2013")
    expect(page.locator("#leading")).to_have_text("happy")
    expect(page.locator("#heat")).to_be_hidden()


def test_several_faces_can_be_chosen_by_keyboard(page: Page, tmp_path: Path) -> None:
    picture = Image.new("RGB", (1024, 512))
    for left in (0, 512):
        picture.paste(portrait(), (left, 0))
    page.set_input_files("#file-photos", jpeg(tmp_path / "two.jpg", picture))
    expect(page.locator(".face")).to_have_count(2)
    expect(page.locator("#which")).to_have_text("Face 1 of 2")
    page.locator(".face").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#which")).to_have_text("Face 2 of 2")
    expect(page.locator(".face").nth(1)).to_have_attribute("aria-pressed", "true")
    check_access(page)


def test_no_face_and_a_refused_file_are_said(page_with_refusals: Page, tmp_path: Path) -> None:
    page = page_with_refusals
    empty = jpeg(tmp_path / "empty.jpg", Image.new("RGB", (400, 300), (90, 120, 90)))
    page.set_input_files("#file-photos", empty)
    expect(page.locator("#certainty")).to_have_text("No face was found in this photo.")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture at all")
    with page.expect_response(lambda response: response.status == 422):
        page.set_input_files("#file-photos", broken)
    expect(page.locator("#message")).to_contain_text("broken.jpg was refused")
    expect(page.locator("#message")).to_contain_text("JPEG, PNG")


@pytest.fixture
def page_with_refusals(browser: Browser, url: str) -> Iterator[Page]:
    """As ``page``; the browser itself reports each refused request on the console."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened, faults = open_page(context, url)
        yield opened
        assert [fault for fault in faults if "Failed to load resource" not in fault] == []


def test_a_clip_fills_its_timeline_and_can_be_scrubbed(page: Page, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", moving_portrait(24))
    page.click("#mode-clip")
    page.set_input_files("#file-clip", clip)
    expect(page.locator("#status")).to_contain_text("Done: 24 frames, one face tracked.")
    expect(page.locator("#leading")).to_have_text("happy")
    check_access(page)
    page.locator("#scrub").focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    expect(page.locator(".face")).to_have_count(1)
    assert float(page.locator("#scrub").input_value()) > 0.1
    with page.expect_download() as waiting:
        page.click("#save-csv")
    rows = read_csv(waiting.value.path())
    assert list(rows[0]) == frame_columns(BASIC.labels)
    assert [int(row["frame"]) for row in rows] == list(range(24))
    assert {(row["track"], row["raw_label"]) for row in rows} == {("1", "happy")}
    with page.expect_download() as waiting:
        page.click("#save-clip")
    with av.open(str(waiting.value.path())) as annotated:
        assert sum(1 for _ in annotated.decode(video=0)) == 24


def test_the_webcam_runs_is_paused_and_scrubbed(page: Page) -> None:
    page.click("#mode-camera")
    page.click("#start")
    expect(page.locator(".face")).to_have_count(1)
    expect(page.locator("#leading")).to_have_text("happy")
    page.wait_for_timeout(1500)
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Resume")
    expect(page.locator("#f-rate")).not_to_have_text("–")
    check_access(page)
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    expect(page.locator("#canvas")).to_be_visible()
    page.click("#explain")
    expect(page.locator("#heat")).to_be_visible()
    page.click("#stop")
    expect(page.locator("#start")).to_be_visible()


def test_a_refused_camera_is_said(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        context.clear_permissions()
        page, faults = open_page(context, url)
        page.evaluate(REFUSE)
        page.click("#mode-camera")
        page.click("#start")
        expect(page.locator("#message")).to_contain_text("refused the camera")
        assert faults == []


REFUSE = """() => {
    navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError"); };
}"""


def test_a_stream_goes_on_after_the_server_is_restarted(browser: Browser, tmp_path: Path) -> None:
    server = Process(tmp_path / "jobs", "--job-workers", "0")
    port = int(server.url.rpartition(":")[2])
    with browser.new_context() as context:
        context.grant_permissions(["camera"], origin=server.url)
        page, _ = open_page(context, server.url)
        page.click("#mode-camera")
        page.click("#start")
        expect(page.locator(".face")).to_have_count(1)
        server.kill()
        expect(page.locator("#message")).to_contain_text("The server is gone")
        server = Process(tmp_path / "jobs", "--job-workers", "0", port=port)
        expect(page.locator(".face")).to_have_count(1)
        expect(page.locator("#message")).to_be_hidden()
    server.stop()


def test_the_api_key_is_asked_for_once(browser: Browser, tmp_path: Path) -> None:
    key = "correct horse battery"
    with (
        running(settings_for(tmp_path / "jobs", api_key=key)) as (address, _),
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(address)
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-ready]", timeout=PATIENCE)
        page.set_input_files("#file-photos", jpeg(tmp_path / "portrait.jpg", portrait()))
        expect(page.locator(".face")).to_have_count(1, timeout=PATIENCE)
        page.click("#mode-camera")
        expect(page.locator("#start")).to_have_text("Start the webcam")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (390, "light")])
def test_the_page_fits_a_phone(browser: Browser, url: str, tmp_path: Path, width: int, scheme: Any) -> None:
    with browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    ) as context:
        page, faults = open_page(context, url)
        page.set_input_files("#file-photos", jpeg(tmp_path / "portrait.jpg", portrait()))
        expect(page.locator(".face")).to_have_count(1)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        check_access(page)
        assert faults == []


@pytest.mark.realdata
def test_a_real_clip_as_webcam_shows_a_tracked_face(
    shared_dir: Path, playwright: Playwright, url: str, tmp_path: Path
) -> None:
    def frames() -> Iterator[np.ndarray]:
        with av.open(str(shared_dir / "media" / "single_face.mp4")) as source:
            for frame in source.decode(video=0):
                yield frame.reformat(width=640, height=480, format="rgb24").to_ndarray()

    camera = write_camera(tmp_path / "camera.y4m", frames())
    with launch(playwright, camera) as browser, browser.new_context() as context:
        context.grant_permissions(["camera"], origin=url)
        page, faults = open_page(context, f"{url}/#camera")
        expect(page.locator(".face")).to_have_count(1)
        expect(page.locator(".face")).to_contain_text("1 · ")
        assert faults == []
