"""Fuzzing of the picture decoders: mutated pictures must be read or refused, in bounded time and memory.

    python fuzz/photos.py --decode 100000 --pipeline 2000
    python fuzz/photos.py --atheris corpus/          # coverage-guided, where atheris is installed

Anything but a result or an ImageError is a finding, and so is a case that takes more than --seconds of
processor time or raises the process's memory above --memory. Findings are written into --out and named; a
case that hangs or crashes the interpreter is found there as `current`. Exit status 1 if there is any.
Ctrl-C (or SIGTERM) ends early with status 130. `--json FILE` gets the figures, those of such a run as well.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import logging
import os
import random
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from ferkit import __version__
from ferkit.core.errors import ImageError
from ferkit.core.files import write_json
from ferkit.core.images import load_image

ASTRONAUT = Path(__file__).parents[1] / "examples" / "astronaut.jpg"

HANG = 120
"""Seconds after which a case counts as hung, and the process ends itself."""

EXTREME = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff",
    b"\x7f\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
)
Case = Callable[[bytes], object]


def encodings(picture: Image.Image) -> Iterator[bytes]:
    """Yield a picture in every format that is read, and most of their variants."""
    exif = Image.Exif()
    exif[0x0112] = 6
    gray, palette, alpha = picture.convert("L"), picture.convert("P"), picture.convert("RGBA")
    wide = Image.fromarray(np.asarray(gray, np.uint16) * 257)
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "JPEG", {"quality": 80, "exif": exif}),
        (picture, "JPEG", {"progressive": True}),
        (gray, "JPEG", {}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "PNG", {}),
        (alpha, "PNG", {"exif": exif}),
        (palette, "PNG", {"transparency": 3}),
        (wide, "PNG", {}),
        (gray.convert("1"), "PNG", {}),
        (picture, "PNG", {"save_all": True, "append_images": [picture]}),
        (picture, "WEBP", {"quality": 60}),
        (alpha, "WEBP", {"lossless": True, "exif": exif}),
        (picture, "WEBP", {"save_all": True, "append_images": [picture]}),
        (picture, "TIFF", {"exif": exif}),
        *((picture, "TIFF", {"compression": f"tiff_{kind}"}) for kind in ("lzw", "deflate", "adobe_deflate")),
        (picture, "TIFF", {"compression": "jpeg"}),
        (palette, "TIFF", {"compression": "packbits"}),
        (gray.convert("1"), "TIFF", {"compression": "group4"}),
        (wide, "TIFF", {}),
        (picture.convert("CMYK"), "TIFF", {}),
        (picture, "BMP", {}),
        (palette, "BMP", {}),
        (palette, "GIF", {}),
        (picture, "GIF", {"save_all": True, "append_images": [picture.rotate(90)]}),
        (picture, "AVIF", {"quality": 60, "exif": exif}),
        (alpha, "AVIF", {"quality": 60}),
    ]
    for image, kind, options in variants:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return a seed with one to eight changes, most of them near its beginning or its end."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 8)):
        size = len(content)
        if not size:
            break
        near = min(size, 400)
        at = rng.choice((rng.randrange(near), size - 1 - rng.randrange(near), rng.randrange(size)))
        match rng.randrange(7):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.randrange(256)
            case 2:
                value = rng.choice(EXTREME)
                content[at : at + len(value)] = value
            case 3:
                del content[at : at + rng.randint(1, 64)]
            case 4:
                content[at:at] = content[at : at + rng.randint(1, 64)]
            case 5:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                content[at : at + 32] = other[start : start + 32]
            case _:
                if rng.random() < 0.3:
                    del content[at:]
    return bytes(content)


class Results:
    """What came of each run: said on stdout, and written as JSON when all of them have ended.

    A context manager, and what turns an interrupt into an early end with status 130.

    Args:
        arguments: Of the command line: ``json``, the file or None, and ``seed``.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._json: Path | None = arguments.json
        self._seed: int = arguments.seed
        self._runs: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        """Take SIGTERM for Ctrl-C, and Ctrl-C for one in a background job, too."""
        for number in (signal.SIGINT, signal.SIGTERM):  # a background job inherits that SIGINT is ignored
            signal.signal(number, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the file, and end the program if it was interrupted."""
        interrupted = isinstance(error, KeyboardInterrupt)
        if self._json is not None:
            about = {"ferkit": __version__, "seed": self._seed, "interrupted": interrupted}
            write_json(self._json, {**about, "runs": self._runs})
        if interrupted:
            sys.exit(130)

    @property
    def findings(self) -> int:
        """How many there are."""
        return sum(run["findings"] for run in self._runs)

    def add(self, name: str, outcomes: Counter[str], slowest: float, seconds: float) -> None:
        """Take what came of a run: how many cases had which outcome, and seconds."""
        names = ("cases", "read", "refused", "findings")
        run = {"name": name, **{outcome: outcomes[outcome] for outcome in names}}
        run |= {"slowest_s": round(slowest, 3), "seconds": round(seconds, 1), "peak_mib": peak_mib()}
        self._runs.append(run)
        print(
            f"{name}: {run['cases']:,} cases in {seconds:.0f} s: {run['read']:,} read, "
            f"{run['refused']:,} refused, {run['findings']} findings; slowest {slowest:.2f} s, "
            f"peak memory {run['peak_mib']} MiB",
            flush=True,
        )


def run_cases(
    name: str,
    count: int,
    seeds: list[bytes],
    case: Case,
    rng: random.Random,
    limits: argparse.Namespace,
    results: Results,
) -> None:
    """Run mutated cases and add to the results what came of them, also if an interrupt ends them."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    current = limits.out / "current"
    begin = time.monotonic()
    try:
        for number in range(count):
            content = mutate(rng, seeds)
            current.write_bytes(content)
            faulthandler.dump_traceback_later(HANG, exit=True, file=sys.stdout)
            start = time.process_time()
            finding = ""
            try:
                case(content)
                outcomes["read"] += 1
            except ImageError:
                outcomes["refused"] += 1
            except Exception as error:  # noqa: BLE001  # whatever it is, it is what this program looks for
                finding = f"{type(error).__name__}: {error}"
            faulthandler.cancel_dump_traceback_later()
            seconds = time.process_time() - start
            outcomes["cases"] += 1
            slowest = max(slowest, seconds)
            memory = peak_mib()
            if not finding and seconds > limits.seconds:
                finding = f"took {seconds:.1f} s"
            if not finding and memory > limits.memory:
                finding = f"memory rose to {memory} MiB"
                limits.memory = memory + 64  # the peak stays: the next finding has to be higher
            if finding:
                outcomes["findings"] += 1
                path = limits.out / f"{name}-{number}"
                path.write_bytes(content)
                print(f"{path}: {finding}", flush=True)
    finally:
        faulthandler.cancel_dump_traceback_later()
        current.unlink(missing_ok=True)
        results.add(name, outcomes, slowest, time.monotonic() - begin)


def add_limits(parser: argparse.ArgumentParser, seconds: float = 5.0) -> None:
    """Add the options that all fuzzers have; ``seconds`` is the default limit of a case."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=seconds, help="processor time that a case may take")
    parser.add_argument("--memory", type=int, default=900, help="MiB that the process may reach")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="folder for findings")
    parser.add_argument("--json", type=Path, help="file for the figures; none by default")


def peak_mib() -> int:
    """Return the most memory that this program has held, in MiB.

    Linux hands ``ru_maxrss`` down from the process that started this one, which may be far larger; the
    high-water mark of ``/proc`` is this program's own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii", errors="replace"), re.M)
        if found:
            return int(found[1]) >> 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10


def fuzz_with_atheris(arguments: list[str]) -> None:
    """Hand decoding to atheris, with its own arguments (a corpus, ``-runs=N``, ...).

    An empty corpus gets one picture of each format and variant to begin with.
    """
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("error: atheris is not installed; `pip install atheris`, or run without --atheris")

    for folder in (Path(argument) for argument in arguments if not argument.startswith("-")):
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
            for number, content in enumerate(encodings(picture)):
                (folder / f"seed-{number}").write_bytes(content)

    def one(content: bytes) -> None:
        with contextlib.suppress(ImageError):
            load_image(content, max_pixels=4_000_000)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> None:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--decode", type=int, default=10_000, help="cases through decoding")
    parser.add_argument("--pipeline", type=int, default=200, help="cases through the whole pipeline")
    add_limits(parser)
    parser.add_argument(
        "--photo", type=Path, default=ASTRONAUT, help="a photo with a face; by default the astronaut"
    )
    parser.add_argument(
        "--atheris", nargs=argparse.REMAINDER, help="hand decoding, and what follows, to atheris"
    )
    arguments = parser.parse_args()
    if arguments.atheris is not None:
        if arguments.json is not None:
            parser.error("atheris keeps its own figures: --json goes without --atheris")
        fuzz_with_atheris(arguments.atheris)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # libtiff writes its complaints to stderr itself.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = sys.stdout
    faulthandler.enable(file=sys.stdout)
    rng = random.Random(arguments.seed)
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    with Results(arguments) as results:
        seeds = list(encodings(Image.fromarray(noise)))
        run_cases("decode", arguments.decode, seeds, load_image, rng, arguments, results)
        if arguments.pipeline:
            from ferkit import Recognizer

            photo = Image.open(arguments.photo).convert("RGB").resize((192, 192))
            seeds, predict = list(encodings(photo)), Recognizer().predict
            run_cases("pipeline", arguments.pipeline, seeds, predict, rng, arguments, results)
    sys.exit(1 if results.findings else 0)


if __name__ == "__main__":
    main()
