"""The taxonomy of a dataset's labels: published names and numbers of emotions, and labels of one's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import (
    FER2013,
    FERPLUS,
    FERPLUS_TO_FER2013,
    KNOWN,
    Taxonomy,
    emotion_of,
    get_taxonomy,
)
from ferkit.data.dataset import SPLITS, FaceDataset

OWN = "own"
"""Id of a taxonomy of the labels that a dataset has."""

MOST_MISSING = 2
"""Labels of a known taxonomy that a dataset may lack; with fewer labels it has a taxonomy of its own."""

_RAF_DB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
_AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
NUMBERS: Mapping[str, Mapping[str, str]] = {
    "raf-db": {str(k): name for k, name in enumerate(_RAF_DB, 1)},
    "affectnet": {str(k): name for k, name in enumerate(_AFFECTNET)},
    **{known.id: {str(k): name for k, name in enumerate(known.labels)} for known in KNOWN.values()},
}
"""The emotion of each number by dataset (Li et al. 2017; Mollahosseini et al. 2017; FER2013; FER+)."""

_KEEP = f"ferkit data convert --taxonomy {OWN} keeps its labels"

_DATASET_NAMES = {
    "raf-db": re.compile(r"raf[-_ ]?db|(train|test)_\d+_aligned", re.IGNORECASE),
    "affectnet": re.compile(r"affect[-_ ]?net", re.IGNORECASE),
}


def label_in(taxonomy: Taxonomy, name: str, numbers: Mapping[str, str]) -> str | None:
    """Return the label of a known taxonomy that a name or a number means, or None."""
    if name.casefold() in taxonomy.labels:
        return name.casefold()
    emotion = numbers.get(name) or emotion_of(name)
    if emotion is not None and emotion not in taxonomy.labels:
        emotion = FERPLUS_TO_FER2013.get(emotion, emotion)
    return emotion if emotion in taxonomy.labels else None


def label_column(text: str, taxonomy: Taxonomy, place: str) -> int:
    """Return the column of a label of a table, given as a number or a name.

    Raises:
        DataError: If it is neither.
    """
    label = label_in(taxonomy, text, NUMBERS[taxonomy.id])
    if label is None:
        known = ", ".join(f"{k} {label}" for k, label in enumerate(taxonomy.labels))
        raise DataError(f"{place}: unknown label {text[:40]!r}; labels of {taxonomy.id} are {known}")
    return taxonomy.labels.index(label)


def numbers_of(names: Collection[str], texts: Sequence[str]) -> str:
    """Return the dataset whose numbers the labels are, if a path or file name says so; else :data:`OWN`."""
    for dataset, pattern in _DATASET_NAMES.items():
        numbers = NUMBERS[dataset]
        fits = set(names) <= set(numbers) and len(numbers) - len(set(names)) <= MOST_MISSING
        if fits and any(pattern.search(text) for text in texts):
            return dataset
    return OWN


def known_taxonomy(names: Collection[str], numbers: str = OWN) -> Taxonomy | None:
    """Return the known taxonomy that the names are labels of, if it has at most two more; else None.

    Names are first compared as they are, then by their meaning: with contempt FER+'s, else FER2013's.

    ``numbers`` is the key of :data:`NUMBERS` for labels that are numbers.
    """
    folded = {name.casefold() for name in names}
    for known in KNOWN.values():
        if folded <= set(known.labels) and len(known) - len(folded) <= MOST_MISSING:
            return known
    table = NUMBERS.get(numbers, {})
    emotions = {label_in(FERPLUS, name, table) for name in folded}
    if None in emotions or len(emotions) < len(folded):  # unknown names, or two names of one emotion
        return None
    known = FERPLUS if "contempt" in emotions else FER2013
    return known if len(known) - len(emotions) <= MOST_MISSING else None


def choose_taxonomy(
    dataset: FaceDataset, wanted: str | None, *, by_name: bool, heads: Collection[Taxonomy] = ()
) -> FaceDataset:
    """Convert labels to the wanted taxonomy, or else to the known one that their names belong to.

    ``by_name`` says that labels are names of folders, which may be those of a known taxonomy. Labels that are
    one of the ``heads`` of a network are kept. What was mapped is said in the notes.

    Raises:
        TaxonomyError: As :func:`to_taxonomy`.
        DataError: As :func:`to_taxonomy`.
    """
    names = dataset.taxonomy.labels
    numbers = dataset.taxonomy.id
    if wanted is not None:
        return to_taxonomy(dataset, wanted)
    if not by_name or dataset.taxonomy.id in KNOWN:
        return dataset
    if any(head.id == OWN and head.labels == names for head in heads):
        return replace(dataset, taxonomy=Taxonomy(OWN, names))
    if (known := known_taxonomy(names, numbers)) is not None:
        dataset = to_taxonomy(dataset, known.id, numbers)
        present = set(np.unique(dataset.labels).tolist())
        missing = [label for k, label in enumerate(known.labels) if k not in present]
        note = f"has no label {', '.join(missing)} of {known.id!r} ({_KEEP})"
        return replace(dataset, notes=(*dataset.notes, note)) if missing else dataset
    if all(name.isdigit() for name in names):
        note = (
            f"labels are numbers; ferkit data convert --taxonomy {'|'.join(NUMBERS)} reads those of a dataset"
        )
        return replace(dataset, notes=(*dataset.notes, note))
    return dataset


def to_taxonomy(dataset: FaceDataset, wanted: str, numbers: str = "") -> FaceDataset:
    """Convert labels to another taxonomy by their meaning.

    Args:
        dataset: Labelled faces.
        wanted: ``fer2013``, ``ferplus``, ``raf-db`` or ``affectnet`` (for labels that are numbers of that
            dataset), or ``own`` for the labels that the faces have.
        numbers: Key of :data:`NUMBERS` for labels that are numbers; by default that of ``wanted``.

    Raises:
        TaxonomyError: If there is no taxonomy ``wanted``, or fewer than two labels are left.
        DataError: If faces have a label that it lacks.
    """
    names, present = dataset.taxonomy.labels, np.unique(dataset.labels).tolist()
    if wanted == OWN:
        target = Taxonomy(OWN, tuple(sorted(names[k] for k in present)))
        found: list[str | None] = list(names)
    else:
        table = NUMBERS.get(numbers or wanted, {})
        contempt = any(label_in(FERPLUS, names[k], table) == "contempt" for k in present)
        by_number = {"raf-db": FER2013, "affectnet": FERPLUS if contempt else FER2013}
        target = by_number.get(wanted) or get_taxonomy(wanted)
        found = [label_in(target, name, table) for name in names]
    if unknown := [names[k] for k in present if found[k] not in target.labels]:
        raise DataError(
            f"{dataset.source}: taxonomy {wanted!r} has no label {unknown[0]!r}; "
            f"it has {', '.join(target.labels)}"
        )
    columns = np.array([target.labels.index(x) if x in target.labels else 0 for x in found], np.int64)
    renamed = [
        f"{names[k]} as {found[k]}" for k in present if found[k] not in (names[k], names[k].casefold())
    ]
    notes = dataset.notes
    if renamed:
        notes = (*notes, f"labels are read as those of {target.id!r}: {', '.join(renamed)} ({_KEEP})")
    return replace(dataset, labels=columns[dataset.labels], taxonomy=target, notes=notes)


def labels_without_training(dataset: FaceDataset, train_split: str = "Training") -> dict[str, str]:
    """Return the labels that have faces, but none in the training split; and the most similar trained label.

    Returns:
        Empty where the training split has no faces at all. The similar label is empty if there is none.
    """
    training = dataset.split == SPLITS.index(train_split)
    trained = [dataset.taxonomy.labels[k] for k in np.unique(dataset.labels[training])]
    if not trained:
        return {}
    return {
        label: next(iter(difflib.get_close_matches(label, trained, 1, 0.8)), "")
        for label in (dataset.taxonomy.labels[k] for k in np.unique(dataset.labels))
        if label not in trained
    }


def describe_untrained(labels: Mapping[str, str], train_split: str = "Training") -> str:
    """Return one sentence about the labels of :func:`labels_without_training`; empty if there are none."""
    if not labels:
        return ""
    shown = [repr(name) + (f" (a misspelling of {near!r}?)" if near else "") for name, near in labels.items()]
    return f"no {train_split} face has the label {', '.join(shown)}, which a network would never predict"


def check_training_labels(dataset: FaceDataset, train_split: str = "Training") -> None:
    """Raise a DataError if a network trained on these faces could not predict one of their labels.

    Raises:
        DataError: If labels have faces in other splits and none in the training split (the message names them
            and similar ones that have), or all training faces have the same label.
    """
    if words := describe_untrained(labels_without_training(dataset, train_split), train_split):
        raise DataError(f"{dataset.source}: {words}; rename or remove its folders or rows")
    trained = np.unique(dataset.labels[dataset.split == SPLITS.index(train_split)])
    if len(trained) == 1:
        label = dataset.taxonomy.labels[trained[0]]
        raise DataError(
            f"{dataset.source}: every {train_split} face has the label {label!r}; add faces of another label"
        )
