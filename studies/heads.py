"""Do rare labels gain if the heads alone are trained again on a finished body?

    python studies/heads.py --data fer2013.csv.gz --votes fer2013new.csv --photos labelled/

The heads of ``--init`` are trained for two epochs on degraded faces, with its body as it is (Kang et al.
2020): without a change, with rare labels drawn more often, and with logit adjustment (Menon et al. 2021).
Each is exported, which fits the output ``basic`` anew, and measured by basic.py, beside the model itself.
Runs and models are below --runs; what is done is skipped. Writes what basic.py writes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from variants import Variant, train_variant

RECIPE, EPOCHS = "photos", 2
_HEADS = ("freeze_body=true", "distil.weight=0")
VARIANTS = (
    Variant("heads-again", "heads trained again", EPOCHS, _HEADS),
    Variant(
        "heads-oversampled", "rare labels drawn more often", EPOCHS, (*_HEADS, "data.balance=oversample")
    ),
    Variant("heads-adjusted", "logit adjustment 1", EPOCHS, (*_HEADS, "loss.logit_adjustment=1")),
)


def main() -> None:
    """Train what is missing, and measure all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--init", default="standard", help="model whose body is kept")
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path, required=True)
    parser.add_argument("--photos", help="labelled photos, to measure on")
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--out", default="results/heads")
    given = parser.parse_args()
    inputs = ["--data", given.data, "--votes", str(given.votes)]
    models = [given.init]
    for variant in VARIANTS:
        run = given.runs / variant.name
        train_variant(
            variant, RECIPE, given.data, run, votes=given.votes, init=given.init, study="studies/heads.py"
        )
        model = run.with_suffix(".onnx")
        if not model.exists():
            words = ["export", str(run), "-o", str(model), "--name", variant.name, *inputs]
            subprocess.run([sys.executable, "-m", "ferkit", *words], check=True)
        models.append(str(model))
    photos = ["--photos", given.photos] if given.photos else []
    study = Path(__file__).with_name("basic.py")
    subprocess.run([sys.executable, study, *models, *inputs, *photos, "--out", given.out], check=True)


if __name__ == "__main__":
    main()
