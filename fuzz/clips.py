"""Fuzzing of what reads clips: mutated files must be read or refused, in bounded time and memory.

    python fuzz/clips.py --cases 1000

A third of the cases is read as a range; a third through the whole pipeline; a third with every output, the
sound as well. What counts as a finding, where findings go, and what `--json` writes is as in ``photos.py``.
"""

from __future__ import annotations

import argparse
import faulthandler
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
from photos import Results, run_cases

from ferkit import Recognizer
from ferkit.core.errors import FerkitError, ImageError, OutputError
from ferkit.video.clip import Clip
from ferkit.video.process import VideoOutputs, process_video

KINDS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("mp4", "libx264", "aac", {}),
    ("mp4", "libx264", "", {"rotation": 90}),
    ("mov", "mjpeg", "pcm_s16le", {"pixels": "yuvj420p"}),
    ("matroska", "libx264", "pcm_s16le", {}),
    ("webm", "libvpx", "libopus", {}),
    ("avi", "mpeg4", "mp3", {}),
    ("mpegts", "libx264", "aac", {}),
    ("mpeg", "mpeg2video", "mp2", {}),
    ("flv", "flv", "", {}),
    ("gif", "gif", "", {"pixels": "rgb8"}),
)


def encodings(folder: Path) -> Iterator[bytes]:
    """Yield half a second of noise with sound in every container and codec of :data:`KINDS`."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 80, 3), np.uint8) for _ in range(12)]
    for container, codec, sound, options in KINDS:
        path = folder / "seed"
        with av.open(str(path), "w", format=container) as target:
            stream: Any = target.add_stream(codec, rate=25)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = options.get("pixels", "yuv420p")
            if "rotation" in options:
                stream.set_display_rotation(options["rotation"])
            audio: Any = target.add_stream(sound, rate=48_000) if sound else None
            if audio is not None:
                audio.codec_context.layout = "mono"
            for k, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                target.mux(stream.encode(frame))
                if audio is not None:
                    heard = av.AudioFrame.from_ndarray(
                        rng.integers(-9000, 9000, (1, 1920), np.int16), format="s16", layout="mono"
                    )
                    heard.sample_rate, heard.pts, heard.time_base = 48_000, 1920 * k, Fraction(1, 48_000)
                    target.mux(audio.encode(heard))
            for each in (stream, audio):
                if each is not None:
                    target.mux(each.encode(None))
        yield path.read_bytes()


def main() -> None:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=1000, help="mutated clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="processor time that a case may take")
    parser.add_argument("--memory", type=int, default=900, help="MiB that the process may reach")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="where findings go")
    parser.add_argument("--json", type=Path, help="file for the figures; none by default")
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
                raise  # it is ours to write what was read, so this is a finding
            except FerkitError as error:
                raise ImageError(str(error)) from error  # what `run_cases` counts as refused

        seeds = list(encodings(folder))
        rng = random.Random(arguments.seed)
        run_cases("clips", arguments.cases, seeds, case, rng, arguments, results)
    sys.exit(1 if results.findings else 0)


if __name__ == "__main__":
    main()
