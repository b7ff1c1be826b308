"""The model card: what a model file says about itself, for people."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from ferkit.core.modelfile import ModelInfo
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.evaluation.subject import data_of

_MIB = 1 << 20

_FER2013_FACES = "5bd56e0a6264bfe012aa49b46b2b87bd1f8b631a31cd0489385489abb3911129"
"""FER2013's Training and PublicTest rows in their order (:func:`ferkit.data.faces_digest`)."""

_FER2013_TRAINING, _FER2013_PUBLIC = range(28_000, 28_710), 3_589
"""Faces of the splits; of Training a recipe may leave out leaks and constant images."""

_LIMITS = """\
## What it tells, and what it must not decide

It tells how a face would have been labelled by the people who labelled its data, not what somebody feels.

- **FER2013's label is a search query.** Images came from an image search for words of emotion and
  were sorted by few people; FER+ had ten people look at each. The two agree on about 63 % of the
  images (happy 92 %, neutral 87 %, fear 13 %), so a network above 70 % has learnt a labelling
  policy as much as an expression.
- **Who is in it is not known.** Nobody recorded age, sex, skin or origin of the people shown;
  celebrities, actors and stock photographs are frequent, posed expressions too. How evenly the
  model errs across groups was not measured.
{leaks}\
- Faces are 48 x 48 pixels, gray and roughly frontal. Profiles, hands over the mouth, masks and
  small faces are read worse; quality of the photo is not judged by the model.
- Do not use it to decide about people: not in hiring, teaching, policing, insurance, or to judge
  truthfulness or health. In the European Union inferring emotions at work and in education is
  forbidden, but for medical and safety reasons (Regulation (EU) 2024/1689, article 5).
"""


_OWN_LIMITS = """\
## What it tells, and what it must not decide

It tells how a face would have been labelled by the people who labelled its data, not what somebody feels.
How evenly it errs across groups of people was not measured. Do not use it to decide about people.

{leaks}"""

_LEAKS = (
    "- **{count:,} {split} images also stand in Training**; figures without them are marked *no leaks*.\n"
)


def render_card(info: ModelInfo, size_bytes: int) -> str:
    """Return the card as Markdown.

    Args:
        info: What the file says about itself; every figure is taken from there.
        size_bytes: Size of the model file.
    """
    of = f" of {len(info.members)} members" if info.members else ""
    parts = [
        f"# {info.name} {info.version}",
        f"{info.architecture}{of}, {info.parameters:,} parameters, {info.mmac:.1f} MMAC per face, "
        f"{size_bytes / _MIB:.2f} MiB ({info.precision} weights). Reads faces of {info.input_size} pixels.",
    ]
    if info.notes:
        parts.append(info.notes)
    heads = [("output", "labels, in order", "temperature", "default")]
    heads += [
        (h.id, ", ".join(h.labels), f"{h.temperature:.3f}", "yes" if h.id == info.default_taxonomy else "")
        for h in info.taxonomies
    ]
    parts += ["## Outputs", _table(heads)]
    leaked = _leaked(info)
    leaks = _LEAKS.format(count=leaked, split=info.metrics[0]["split"]) if leaked else ""
    if info.members:
        parts += ["## Members", *_members(info)]
    parts.append("## Data and training")
    if info.members:
        for number, member in enumerate(info.members, 1):
            parts.append(f"### Member {number}, {member['name']}")
            parts.append(_training(member.get("recipe", {}), member.get("data", {}), set(member["weights"])))
    else:
        parts.append(_training(info.recipe, info.data, {head.id for head in info.taxonomies}))
    parts += ["## Figures", _figures(info)]
    if info.metrics:
        parts += ["## Recall by class", _recalls(info)]
        parts.append(
            "ECE: top label, 15 bins; *out of fold* under a "
            f"{'vote' if info.members else 'temperature'} fitted to the other four fifths. A perfectly "
            "calibrated model reads about 0.018 at 3,589 faces."
        )
    limits = (_LIMITS if any(map(has_fer2013_faces, data_of(info))) else _OWN_LIMITS).format(leaks=leaks)
    parts += [limits, f"## Licence\n\n{info.licence or 'Not stated by who made it'}."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _members(info: ModelInfo) -> list[str]:
    """Return the parts that tell who votes, with which weight, and what was fitted."""
    ids = [head.id for head in info.taxonomies]
    rows = [("", "member", "architecture", "parameters", *(f"weight, {t}" for t in ids), "SHA-256")]
    for number, member in enumerate(info.members, 1):
        weights = [member["weights"].get(t) for t in ids]
        rows.append(
            (
                str(number),
                f"{member['name']} {member.get('version', '')}".strip(),
                member.get("architecture", ""),
                f"{member.get('parameters', 0):,}",
                *("-" if weight is None else f"{weight:.3f}" for weight in weights),
                f"`{member['sha256'][:16]}`",
            )
        )
    data = info.data
    fitted = {head: what for head, what in data.get("fitted", {}).items() if what != "nothing"}
    lines = [
        f"- {head}: {what} fitted on {data.get('fitted_on')} of {data.get('source', 'unknown')}, fingerprint "
        f"`{str(data.get('fingerprint', ''))[:16]}`"
        for head, what in fitted.items()
    ]
    if rest := [head for head in ids if head not in fitted]:
        lines.append(f"- {', '.join(rest)}: nothing was fitted to labels of it")
    return [_table(rows), "\n".join(lines)]


def _training(recipe: Mapping[str, Any], data: Mapping[str, Any], heads: AbstractSet[str]) -> str:
    """Return the list of what made one network."""
    if "ensemble" in recipe:
        return "- An ensemble itself, which votes as one"
    start, voted = data.get("init"), recipe.get("heads", {}).get("ferplus")
    lines = [
        f"- Data: {data.get('source', 'unknown')}, fingerprint `{str(data.get('fingerprint', ''))[:16]}`; "
        f"{data.get('training', 0):,} faces of {data.get('train_split', 'Training')}"
        + (f"; FER+ votes as soft labels{' of the second head' * (len(heads) > 1)}" if voted else "")
        + (
            "; no other images and no pretrained weights"
            if heads <= {FER2013.id, FERPLUS.id} and not (start or data.get("teacher"))
            else ""
        )
        + (f"; started from the weights `{start['from']}`" if start else "")
    ]
    if teacher := data.get("teacher"):
        names = ", ".join(f"`{model['name']}`" for model in teacher["models"])
        part = recipe.get("distil", {})
        kind = "calibrated answers" if teacher.get("calibrated", True) else "answers before calibration"
        lines.append(
            f"- Distilled from {names}: {teacher['tta']} {kind} about the training faces "
            f"{'as the student saw them, asked in every step, ' * bool(teacher.get('online'))}in "
            f"{' and '.join(teacher['heads'])}, temperature {part.get('temperature', 1):g}, "
            f"{100 * part.get('weight', 0):.0f} % of these heads' loss"
        )
    if recipe:
        lines.append(
            f"- Recipe `{recipe['name']}`: {data.get('epochs', recipe['epochs'])} epochs, batches of "
            f"{recipe['batch_size']}, {recipe['optimizer']['name']}, seed {recipe['seed']}; "
            "the whole recipe lies in the model file"
        )
    if faces := min(recipe.get("precise_batch_norm", 0), data.get("training", 0)):
        lines.append(
            f"- Batch normalisation's means and variances are those of {faces:,} training faces without "
            "augmentation, taken after the last epoch"
        )
    for change in data.get("changed", []):
        begun, now = change["epochs"]
        lines.append(
            f"- The run began with {begun} epochs and was set to {now} after epoch {change['after']}"
        )
        # Of the schedules only this one stretches over all epochs.
        if recipe.get("schedule", {}).get("name") == "cosine" and begun != recipe["epochs"]:
            pace = "more slowly" if begun > recipe["epochs"] else "faster"
            lines[-1] += f", so its learning rate first fell {pace} than the recipe's"
    if data.get("training_hours"):
        machine = data.get("machine", {})
        lines.append(
            f"- {data['training_hours']:.1f} hours on {machine.get('processor', 'an unknown processor')}, "
            f"{machine.get('cores', '?')} core(s)"
        )
    averaged = recipe.get("optimizer", {}).get("ema")
    lines.append(
        f"- The weights are {'averaged over the steps up to' if averaged else 'those of'} the last epoch, "
        "not of the best"
    )
    if parity := data.get("parity_with_keras"):
        lines.append(
            "- Against the Keras network in float32: largest difference of a probability "
            f"{parity['largest_difference']:.1e}, same label on {100 * parity['same_label']:.2f} % of faces"
        )
    return "\n".join(lines)


def has_fer2013_faces(data: Mapping[str, Any]) -> bool:
    """Tell whether a model's data are FER2013's, which labels of that name alone do not make them.

    With PrivateTest, or as pictures, their digest is another one: then the sizes of the splits tell.
    """
    if _FER2013_FACES in (data.get("faces"), data.get("fingerprint")):
        return True
    sizes = data.get("training") in _FER2013_TRAINING and data.get("validation") == _FER2013_PUBLIC
    return sizes and (data.get("train_split"), data.get("validation_split")) == ("Training", "PublicTest")


def _leaked(info: ModelInfo) -> int:
    """Return how many of the measured faces stand in Training, by the figures with and without them."""
    faces: dict[bool, dict[tuple[str, str], int]] = {False: {}, True: {}}
    for row in info.metrics:
        faces[row["without_leaks"]][row["labels"], row["tta"]] = row["n"]
    # Labels from votes leave some faces out; the largest set tells best.
    return max((faces[False][key] - n for key, n in faces[True].items()), default=0)


def _figures(info: ModelInfo) -> str:
    if not info.metrics:
        return "Nothing was measured."
    splits = {row["split"] for row in info.metrics}
    rows = [("labels", "tta", "faces", "accuracy %", "95 % interval", "macro F1 %", "ECE", "ECE out of fold")]
    for row in info.metrics:
        out_of_fold = row["ece_out_of_fold"]
        rows.append(
            (
                row["labels"] + (", no leaks" if row["without_leaks"] else ""),
                row["tta"],
                f"{row['n']:,}",
                f"{100 * row['accuracy']:.2f}",
                f"{100 * row['interval'][0]:.2f}-{100 * row['interval'][1]:.2f}",
                f"{100 * row['macro_f1']:.2f}",
                f"{row['ece']:.4f}",
                "-" if out_of_fold is None else f"{out_of_fold:.4f}",
            )
        )
    note = f"Measured on {', '.join(sorted(splits))}"
    if any(row["selection_split"] for row in info.metrics):
        note += ", the *selection split*: recipes were compared and temperatures fitted on it, "
        note += "so these are no test results"
    if any(str(row.get("fit", "")).startswith("weights") for row in info.metrics):
        note += (
            ". Accuracy, macro F1 and recall are those of votes whose weights were fitted to the other four "
        )
        note += "fifths; ECE is that of this file on the faces that it was fitted to"
    return f"{note}.\n\n{_table(rows)}"


def _recalls(info: ModelInfo) -> str:
    parts = []
    for row in info.metrics:
        if row["tta"] == "none" and not row["without_leaks"] and "argmax" not in row["labels"]:
            labels = list(row["recall"])
            values = ["-" if v is None else f"{100 * v:.1f}" for v in row["recall"].values()]
            parts.append(_table([(row["labels"], *labels), ("recall %", *values)]))
    return "\n\n".join(parts)


def _table(rows: list[Any]) -> str:
    first, *rest = rows
    lines = ["| " + " | ".join(first) + " |", "|" + "---|" * len(first)]
    lines += ["| " + " | ".join(row) + " |" for row in rest]
    return "\n".join(lines)
