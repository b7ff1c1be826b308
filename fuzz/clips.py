"""Fuzzing of clips: mutated files are read or refused, in bounded time and memory.

    python fuzz/clips.py --cases 1000

A third of the cases reads a range, a third runs the whole pipeline, and a third writes all outputs with the
audio. Any exception except a FerkitError is a finding, and so is an OutputError. Findings and `--json` are as
in ``photos.py``.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from photos import Results, add_limits, run_cases
from PIL import Image

from ferkit import Recognizer
from ferkit.core.errors import FerkitError, ImageError, OutputError
from ferkit.video.clip import Clip
from ferkit.video.process import VideoOutputs, process_video

KINDS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("mp4", "libx264", "aac", {}),
    ("mp4", "libx264", "", {"rotation": 90}),
    ("mp4", "libx264", "", {"streams": 2}),
    ("mov", "mjpeg", "pcm_s16le", {"pixels": "yuvj420p"}),
    ("matroska", "libx264", "pcm_s16le", {}),
    ("webm", "libvpx", "libopus", {}),
    ("avi", "mpeg4", "mp3", {"bf": "2"}),
    ("mpegts", "libx264", "aac", {}),
    ("mpeg", "mpeg2video", "mp2", {"bf": "2"}),
    ("flv", "flv", "", {}),
    ("gif", "gif", "", {"pixels": "rgb8"}),
)
"""Container, video codec, audio codec (empty: none), and options."""

PICTURES = ("JPEG", "PNG", "WEBP")
"""Photos with EXIF, and animations where the format has them."""


def encodings(folder: Path) -> Iterator[bytes]:
    """Yield half a second of noise with audio in each of :data:`KINDS`, and each of :data:`PICTURES`."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 80, 3), np.uint8) for _ in range(12)]
    for container, codec, sound, options in KINDS:
        path = folder / "seed"
        with av.open(str(path), "w", format=container) as target:
            coding = {"bf": options["bf"]} if "bf" in options else {}
            streams: list[Any] = []
            for _ in range(options.get("streams", 1)):
                stream: Any = target.add_stream(codec, rate=25, options=coding)
                stream.height, stream.width = pictures[0].shape[:2]
                stream.pix_fmt = options.get("pixels", "yuv420p")
                if "rotation" in options:
                    stream.set_display_rotation(options["rotation"])
                streams.append(stream)
            audio: Any = target.add_stream(sound, rate=48_000) if sound else None
            if audio is not None:
                audio.codec_context.layout = "mono"
            for k, picture in enumerate(pictures):
                for stream in streams:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = k, Fraction(1, 25)
                    target.mux(stream.encode(frame))
                if audio is not None:
                    noise = rng.integers(-9000, 9000, (1, 1920), np.int16)
                    samples = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
                    samples.sample_rate, samples.pts, samples.time_base = (
                        48_000,
                        1920 * k,
                        Fraction(1, 48_000),
                    )
                    target.mux(audio.encode(samples))
            for each in (*streams, audio):
                if each is not None:
                    target.mux(each.encode(None))
        yield path.read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    first, *others = [Image.fromarray(picture) for picture in pictures[:4]]
    for form in PICTURES:
        content = io.BytesIO()
        animated = {} if form == "JPEG" else {"save_all": True, "append_images": others, "duration": 80}
        first.save(content, form, exif=exif, **animated)
        yield content.getvalue()


def main() -> None:
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=1000, help="mutated clips")
    add_limits(parser, seconds=10.0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    faulthandler.enable(file=sys.stdout)
    recognizer = Recognizer(detector="none")
    turn = 0
    with Results(arguments) as results, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outputs = VideoOutputs(folder / "o.mp4", folder / "o.csv", folder / "o.jsonl")

        def case(content: bytes) -> None:
            nonlocal turn
            turn += 1
            path = folder / "clip"
            path.write_bytes(content)
            try:
                if turn % 3 == 0:
                    list(Clip(path, start="0.2", end=2).frames())
                elif turn % 3 == 1:
                    list(recognizer.video(path))
                else:
                    process_video(recognizer, path, outputs)
            except OutputError:
                raise  # writing frames that were read must not fail: a finding
            except FerkitError as error:
                raise ImageError(str(error)) from error  # counted as refused by `run_cases`

        seeds = list(encodings(folder))
        rng = random.Random(arguments.seed)
        run_cases("clips", arguments.cases, seeds, case, rng, arguments, results)
    sys.exit(1 if results.findings else 0)


if __name__ == "__main__":
    main()
