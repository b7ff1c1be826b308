"""The model card: the metadata of a model file as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from ferkit.core.errors import ModelFileError
from ferkit.core.modelfile import HeadInfo, Join, MemberInfo, Metric, ModelInfo, Provenance, Teachers
from ferkit.core.taxonomy import BASIC, FER2013, FERPLUS
from ferkit.evaluation.model import facts_of

_MIB = 1 << 20

_ERRORS = (0.2, 0.1, 0.05)
"""Wanted errors in the table of selective answers."""

_FER2013_LIMITS = """\
## Limits and use

The model predicts the label that the annotators of its data would give a face, not what a person feels.

- **FER2013's label is a search query.** The images were found with an image search for words of emotion and
  sorted by few people. FER+ asked ten people about each image. The two agree on about 63 % of the images
  (happy 92 %, neutral 87 %, fear 13 %), so accuracy above 70 % also measures how well a network has learnt a
  labelling policy.
- **The people in it are unknown.** Age, sex, skin colour and origin were not recorded; celebrities, actors,
  stock photographs and posed expressions are frequent. Differences in accuracy between groups of people were
  not measured.
{leaks}\
- Faces are 48 x 48 pixels, gray and roughly frontal. Accuracy is lower for profiles, hands over the mouth,
  masks and small faces; the model does not judge the quality of the photo.
- Do not use it to decide about people: not in hiring, teaching, policing or insurance, and not to judge
  truthfulness or health. In the European Union, inferring emotions at work and in education is forbidden,
  except for medical and safety reasons (Regulation (EU) 2024/1689, article 5).
"""

_OWN_LIMITS = """\
## Limits and use

The model predicts the label that the annotators of its data would give a face, not what a person feels.
Differences in accuracy between groups of people were not measured. Do not use it to decide about people.

{leaks}"""

_LEAKS = (
    "- **{n:,} {split} images are duplicates of training images**; rows marked *no leaks* leave them out.\n"
)


def render_card(info: ModelInfo, size_bytes: int) -> str:
    """Return the card as Markdown."""
    of = f" of {len(info.members)} members" if info.members else ""
    heads = [("output", "labels, in order", "temperature", "default")]
    heads += [
        (h.id, ", ".join(h.labels), f"{h.temperature:.3f}", "yes" if h.id == info.default_taxonomy else "")
        for h in info.taxonomies
    ]
    joins = [_join(h, h.join) for h in info.taxonomies if h.join is not None]
    parts = [
        f"# {info.name} {info.version}",
        f"{info.architecture}{of}, {info.parameters:,} parameters, {info.mmac:.1f} MMAC per face, "
        f"{size_bytes / _MIB:.2f} MiB ({info.precision} weights). Input: faces of {info.input_size} pixels.",
        info.notes,
        "## Outputs",
        _table(heads),
        *joins,
        _priors(info),
        _coverage(info),
    ]
    if info.members:
        parts += ["## Members", _members(info), _fit(info)]
    parts.append("## Data and training")
    for number, member in enumerate(info.members, 1):
        parts += [f"### Member {number}, {member.name}", _training(member, set(member.weights))]
    if not info.members:
        parts.append(_training(info, {head.id for head in info.taxonomies}))
    parts += ["## Figures", _figures(info)]
    if info.metrics:
        what = "an ensemble" if info.members else "a temperature"
        parts += [
            "## Recall by class",
            *_recalls(info.metrics),
            f"ECE: top label, 15 bins; *out of fold* with {what} fitted to the other four fifths. The ECE of "
            "a perfectly calibrated model is about 0.018 at 3,589 faces.",
        ]
    limits = _FER2013_LIMITS if any(record.has_fer2013_faces for record in info.provenance) else _OWN_LIMITS
    parts += [limits.format(leaks=_leaks(info.metrics)), f"## Licence\n\n{info.licence or 'Not stated'}."]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _join(head: HeadInfo, join: Join) -> str:
    """Return a sentence about an output that joins two heads."""
    weights = " and ".join(f"{weight:.2f} of {name}" for name, weight in join.weights.items())
    return (
        f"`{head.id}` joins two heads: the geometric mean of their probabilities, {weights}, with a "
        f"correction of the prior. Fitted to label distributions, of which {100 * join.votes:.0f} % are FER+ "
        f"votes and the rest FER2013's label; labels weighted to the power {join.prior_exponent:g} of their "
        "frequency."
    )


def _priors(info: ModelInfo) -> str:
    """Return the table of the priors, for the outputs that have one."""
    known = [head for head in info.taxonomies if head.prior]
    if not known:
        return ""
    lines = [
        f"- `{head.id}`: "
        + ", ".join(f"{label} {100 * p:.1f}" for label, p in zip(head.labels, head.prior, strict=True))
        for head in known
    ]
    return "Prior of the labels that the probabilities presume, in %:\n\n" + "\n".join(lines)


def _coverage(info: ModelInfo) -> str:
    """Return the table of the confidences that some errors need."""
    known = [(head, head.coverage) for head in info.taxonomies if head.coverage is not None]
    if not known:
        return ""
    rows = [("output", "wanted error", "confidence", "faces answered %", "error %", "labels")]
    for head, curve in known:
        for wanted in _ERRORS:
            try:
                at = curve.thresholds.index(curve.threshold_for(wanted))
            except ModelFileError:
                continue
            found = (f"{curve.thresholds[at]:.2f}", f"{100 * curve.coverage[at]:.0f}")
            rows.append((head.id, f"{wanted:g}", *found, f"{100 * curve.error[at]:.1f}", curve.labels))
    return f"Selective answers (`--max-error`), on {known[0][1].split}, out of fold:\n\n{_table(rows)}"


def _members(info: ModelInfo) -> str:
    """Return the table of the members and their weights."""
    ids = [head.id for head in info.taxonomies if head.join is None]
    rows = [("", "member", "architecture", "parameters", *(f"weight, {t}" for t in ids), "SHA-256")]
    for number, member in enumerate(info.members, 1):
        weights = [f"{member.weights[t]:.3f}" if t in member.weights else "-" for t in ids]
        name, digest = f"{member.name} {member.version}", f"`{member.sha256[:16]}`"
        rows.append((str(number), name, member.architecture, f"{member.parameters:,}", *weights, digest))
    return _table(rows)


def _fit(info: ModelInfo) -> str:
    """Return the list of what was fitted of an ensemble."""
    training = info.training
    lines = [
        f"- {taxonomy}: {fit} fitted on {training.fitted_on} of {_data(training)}"
        for taxonomy, fit in training.fitted.items()
        if fit != "nothing"
    ]
    rest = [head.id for head in info.taxonomies if training.fitted.get(head.id, "nothing") == "nothing"]
    return "\n".join(lines + ([f"- {', '.join(rest)}: nothing was fitted to its labels"] if rest else []))


def _data(training: Provenance) -> str:
    return f"{training.source or 'unknown data'}, fingerprint `{training.fingerprint[:16]}`"


def _training(model: ModelInfo | MemberInfo, heads: AbstractSet[str]) -> str:
    """Return the list of how one network was trained."""
    training, recipe = model.training, model.recipe
    parts = [f"{_data(training)}; {training.training:,} faces of {training.trained_on or 'Training'}"]
    if recipe.get("heads", {}).get("ferplus"):
        parts.append("FER+ votes as soft targets" + " of the second head" * (len(heads) > 1))
    if training.init:
        parts.append(f"initial weights: `{training.init.name}`")
    elif heads <= {FER2013.id, FERPLUS.id, BASIC.id} and not training.teachers:
        parts.append("no other images and no pretrained weights")
    lines = [f"Data: {'; '.join(parts)}"]
    if training.teachers:
        lines.append(_distillation(training.teachers))
    if recipe:
        epochs = recipe["epochs"] if training.epochs is None else training.epochs
        lines.append(
            f"Recipe `{recipe['name']}`: {epochs} epochs, batches of {recipe['batch_size']}, "
            f"{recipe['optimizer']['name']}, seed {recipe['seed']}; the model file holds the whole recipe"
        )
    if faces := min(recipe.get("precise_batch_norm", 0), training.training):
        lines.append(
            f"Batch normalisation: means and variances of {faces:,} training faces without augmentation, "
            "computed after the last epoch"
        )
    for change in training.changed:
        begun, now = change.epochs
        line = f"The number of epochs was changed from {begun} to {now} after epoch {change.after}"
        # Of the schedules only this one depends on the number of epochs.
        if recipe.get("schedule", {}).get("name") == "cosine" and begun != recipe["epochs"]:
            pace = "more slowly" if begun > recipe["epochs"] else "faster"
            line += f"; until then the learning rate fell {pace} than in the recipe"
        lines.append(line)
    if training.hours:
        machine = f"{training.processor or 'an unknown processor'}, {training.cores or '?'} core(s)"
        lines.append(f"{training.hours:.1f} hours on {machine}")
    averaged = recipe.get("optimizer", {}).get("ema")
    lines.append(
        f"Weights of the run: {'moving average up to' if averaged else 'those of'} its last epoch, "
        "not the best"
    )
    if isinstance(model, ModelInfo) and (parity := model.parity):
        lines.append(
            "Compared with the float32 Keras network: largest difference of a probability "
            f"{parity.largest_difference:.1e}, same label on {100 * parity.same_label:.2f} % of the faces"
        )
    return "\n".join(f"- {line}" for line in lines)


def _distillation(teachers: Teachers) -> str:
    names = ", ".join(f"`{model.name}`" for model in teachers.models)
    kind = "calibrated" if teachers.calibrated else "uncalibrated"
    of = "each augmented batch" if teachers.online else "the training faces"
    return (
        f"{'Online' if teachers.online else 'Offline'} distillation from {names}: their {kind} predictions "
        f"for {of}, tta {teachers.tta}, in {' and '.join(teachers.heads)}; temperature "
        f"{teachers.temperature:g}, {100 * teachers.weight:.0f} % of these heads' loss"
    )


def _leaks(metrics: Sequence[Metric]) -> str:
    """Return the line about duplicates, counted by the figures with and without them."""
    faces: dict[bool, dict[tuple[str, str], int]] = {False: {}, True: {}}
    for row in metrics:
        faces[row.without_leaks][row.labels, row.tta] = row.n
    # Labels from votes leave some faces out; the largest set shows the most duplicates.
    leaked = max((faces[False][key] - n for key, n in faces[True].items()), default=0)
    return _LEAKS.format(n=leaked, split=metrics[0].split) if leaked else ""


def _figures(info: ModelInfo) -> str:
    if not info.metrics:
        return "Nothing was measured."
    rows = [("labels", "tta", "faces", "accuracy %", "95 % interval", "macro F1 %", "ECE", "ECE out of fold")]
    rows += [
        (
            row.labels + (", no leaks" if row.without_leaks else ""),
            row.tta,
            f"{row.n:,}",
            f"{100 * row.accuracy:.2f}",
            f"{100 * row.interval[0]:.2f}-{100 * row.interval[1]:.2f}",
            f"{100 * row.macro_f1:.2f}",
            f"{row.ece:.4f}",
            "-" if row.ece_out_of_fold is None else f"{row.ece_out_of_fold:.4f}",
        )
        for row in info.metrics
    ]
    splits = {row.split for row in info.metrics}
    note = f"Measured on {', '.join(sorted(splits))}"
    if splits & set(facts_of(info).fitted_on):
        note += (
            ", the *selection split*: recipes were compared and temperatures fitted on it, so these are no "
            "test results"
        )
    if info.training.weights_fitted:
        note += (
            ". Accuracy, macro F1 and recall are those of ensembles whose weights were fitted to the other "
            "four fifths; ECE is that of this file on the faces that it was fitted to"
        )
    return f"{note}.\n\n{_table(rows)}"


def _recalls(metrics: Sequence[Metric]) -> list[str]:
    """Return a table of recall for each label set, without test-time augmentation."""
    return [
        _table(
            [
                (row.labels, *row.recall),
                ("recall %", *("-" if v is None else f"{100 * v:.1f}" for v in row.recall.values())),
            ]
        )
        for row in metrics
        if row.tta == "none" and not row.without_leaks and "argmax" not in row.labels
    ]


def _table(rows: Sequence[Any]) -> str:
    first, *rest = rows
    lines = ["| " + " | ".join(first) + " |", "|" + "---|" * len(first)]
    lines += ["| " + " | ".join(row) + " |" for row in rest]
    return "\n".join(lines)
