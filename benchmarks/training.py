"""How fast a recipe trains here, and what of its step is augmentation and waiting for input.

    python benchmarks/training.py [--recipe small] [--seconds 20] [--out bench-out]

Three steps are timed in turn in one run: the step as training does it, inside Keras' ``fit`` with its input;
the same step with a batch that lies ready; and that without augmentation. The first less the second is
waiting for input, the second less the third is augmentation; shares are of the first. Medians.

With --narrow a fourth: the second with kernels' gradients of narrow maps as the backend computes them, row by
row, in place of images side by side (ferkit.models.convolution).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ferkit.cli.common import load_keras
from ferkit.core.files import write_json

_ROUND = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--data", default="cartoon:4000")
    parser.add_argument("--votes", default=None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--narrow", action="store_true", help="also without images side by side")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    args = parser.parse_args()
    load_keras()
    from ferkit.augment import AugmentConfig
    from ferkit.core.runtime import usable_cores
    from ferkit.data import load_data
    from ferkit.models import convolution
    from ferkit.training.precision import processor_name
    from ferkit.training.recipe import load_recipe
    from ferkit.training.trainer import set_up

    recipe = load_recipe(args.recipe)
    dataset = load_data(args.data, votes=args.votes)
    plain = recipe.model_copy(update={"augment": AugmentConfig()})
    whole = set_up(recipe, dataset)
    ready = whole.batches[0][0]
    stepped = {"ready": whole, "plain": set_up(plain, dataset)}
    times: dict[str, list[float]] = {"fit": [], "ready": [], "plain": []}
    _fit(whole, [])  # compiles
    if args.narrow:
        stepped["narrow"] = set_up(recipe, dataset)
        times["narrow"] = []
    row = convolution.ROW
    for name, setup in stepped.items():
        convolution.ROW = 1 if name == "narrow" else row  # read while the step is compiled
        for _ in range(3):
            setup.model.train_on_batch(ready)
    convolution.ROW = row
    end = time.perf_counter() + args.seconds
    # In turn, so that a change of the machine's speed meets all alike.
    while time.perf_counter() < end:
        _fit(whole, times["fit"])
        for name, setup in stepped.items():
            for _ in range(_ROUND):
                began = time.perf_counter()
                setup.model.train_on_batch(ready)
                times[name].append(time.perf_counter() - began)
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    size = min(recipe.batch_size, len(dataset))
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "machine": f"{processor_name()}, {usable_cores()} cores",
        "batch_size": size,
        "steps": len(times["fit"]),
        "images_per_second": size / middle["fit"],
        "images_per_second_without_input": size / middle["ready"],
        "images_per_second_without_input_and_augmentation": size / middle["plain"],
        "share_of_input": (middle["fit"] - middle["ready"]) / middle["fit"],
        "share_of_augmentation": (middle["ready"] - middle["plain"]) / middle["fit"],
    }
    if args.narrow:
        result["images_per_second_without_input_in_narrow_rows"] = size / middle["narrow"]
    write_json(args.out / "training.json", result)
    print(f"{result['machine']}; recipe {recipe.name}, batches of {size}, {result['steps']} steps (medians)")
    print(f"training          {result['images_per_second']:8.0f} images/s")
    print(f"waiting for input {100 * result['share_of_input']:8.1f} % of the step")
    print(f"augmentation      {100 * result['share_of_augmentation']:8.1f} % of the step")
    if args.narrow:
        ready_rate, narrow_rate = size / middle["ready"], size / middle["narrow"]
        print(f"a batch that lies ready {ready_rate:.0f} images/s, in narrow rows {narrow_rate:.0f} images/s")


def _fit(setup: Any, times: list[float]) -> None:
    """Train some steps as a run does, and add to ``times`` how long each took, with waiting for its batch."""
    import keras

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        began = 0.0

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            if batch:  # the first starts the pipeline
                times.append(time.perf_counter() - self.began)

    setup.model.fit(setup.batches, steps_per_epoch=_ROUND + 1, callbacks=[Clock()], verbose=0, shuffle=False)


if __name__ == "__main__":
    main()
