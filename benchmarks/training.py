"""How fast a recipe trains here, and what of its step is augmentation and waiting for input.

    python benchmarks/training.py [--recipe small] [--seconds 20] [--out bench-out]

Three things are timed side by side in one run: the step as it is, the step without augmentation, and the
input alone (drawing batches, without a network). Shares are of the step as it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ferkit.cli.common import load_keras
from ferkit.files import write_json


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--data", default="cartoon:4000")
    parser.add_argument("--votes", default=None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    args = parser.parse_args()
    load_keras()
    from ferkit.augment import AugmentConfig
    from ferkit.data import load_dataset
    from ferkit.runtime import usable_cores
    from ferkit.training.recipe import load_recipe
    from ferkit.training.trainer import processor_name

    recipe = load_recipe(args.recipe)
    dataset = load_dataset(args.data, votes=args.votes)
    plain = recipe.model_copy(update={"augment": AugmentConfig()})
    steps = {"as it is": _stepper(recipe, dataset), "without augmentation": _stepper(plain, dataset)}
    times: dict[str, list[float]] = {name: [] for name in (*steps, "input alone")}
    batches = {name: step[1] for name, step in steps.items()}
    for step, source in steps.values():
        for _ in range(3):
            step(next(source))  # compiled in the first, settled after the third
    end = time.perf_counter() + args.seconds
    # In turn, so that a change of the machine's speed meets all alike.
    while time.perf_counter() < end:
        for name, (step, _) in steps.items():
            began = time.perf_counter()
            batch = next(batches[name])
            drawn = time.perf_counter()
            step(batch)
            times[name].append(time.perf_counter() - began)
            if name == "as it is":
                times["input alone"].append(drawn - began)
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    whole = middle["as it is"]
    size = min(recipe.batch_size, len(dataset))
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "machine": f"{processor_name()}, {usable_cores()} cores",
        "batch_size": size,
        "steps": len(times["as it is"]),
        "images_per_second": size / whole,
        "images_per_second_without_augmentation": size / middle["without augmentation"],
        "share_of_augmentation": max(0.0, 1 - middle["without augmentation"] / whole),
        "share_of_input": middle["input alone"] / whole,
    }
    write_json(args.out / "training.json", result)
    print(f"{result['machine']}; recipe {recipe.name}, batches of {size}, {result['steps']} steps (medians)")
    print(f"training                {result['images_per_second']:8.0f} images/s")
    print(f"without augmentation    {result['images_per_second_without_augmentation']:8.0f} images/s")
    print(f"augmentation            {100 * result['share_of_augmentation']:8.1f} % of the step")
    print(f"input                   {100 * result['share_of_input']:8.1f} % of the step")


def _stepper(recipe: Any, dataset: Any) -> tuple[Callable[[Any], Any], Iterator[Any]]:
    """Return a function that does one step of training, and an endless source of its batches."""
    import tempfile

    from ferkit.training.trainer import Quiet, Session

    session = Session(recipe, dataset, Path(tempfile.gettempdir()), (), Quiet())

    def batches() -> Iterator[Any]:
        while True:
            for at in range(len(session.faces)):
                yield session.faces[at]

    return (lambda batch: session.model.train_on_batch(batch[0])), batches()


if __name__ == "__main__":
    main()
