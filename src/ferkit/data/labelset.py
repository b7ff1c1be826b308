"""Which set of labels a source's faces are in: its own names, or one that ferkit knows."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import KNOWN, Taxonomy, get_taxonomy

OWN = "own"
"""Id of the taxonomy that a folder's own labels make."""

MOST_LACKING = 2
"""Labels that may lack where names are taken for those of a known set; fewer names are a set of their own."""


def known_set_of(names: Collection[str]) -> Taxonomy | None:
    """Return the known taxonomy that has all these names (in any case) and at most two more, or None."""
    folded = {name.casefold() for name in names}
    for known in KNOWN.values():
        if folded <= set(known.labels) and len(known) - len(folded) <= MOST_LACKING:
            return known
    return None


def fit_labels(
    source: str,
    labels: NDArray[np.int64],
    taxonomy: Taxonomy,
    wanted: str | None = None,
    *,
    by_name: bool,
    heads: Collection[Taxonomy] = (),
) -> tuple[NDArray[np.int64], Taxonomy, str]:
    """Bring labels into the taxonomy that was asked for, or else into the one that their names are of.

    Args:
        source: For messages.
        labels: int64 ``[N]``, columns of ``taxonomy``.
        taxonomy: The labels' names.
        wanted: As :func:`in_taxonomy`; None looks at the names, with ``by_name``.
        by_name: Whether a taxonomy ``own`` is but a folder's names, which may be most of a known one's.
        heads: What the network has that the faces are for: where just this taxonomy is one, it stays.

    Returns:
        Labels, their taxonomy, and a remark where the names decided; else it is empty.

    Raises:
        TaxonomyError: As :func:`in_taxonomy`.
        DataError: As :func:`in_taxonomy`.
    """
    if wanted is not None:
        return *in_taxonomy(source, labels, taxonomy, wanted), ""
    known = known_set_of(taxonomy.labels) if by_name and taxonomy.id == OWN else None
    if known is None or taxonomy in heads:
        return labels, taxonomy, ""
    return *in_taxonomy(source, labels, taxonomy, known.id), describe_lacking(source, taxonomy.labels, known)


def describe_lacking(source: str, names: Collection[str], known: Taxonomy) -> str:
    """Return the remark about names that are taken for those of a known taxonomy."""
    folded = {name.casefold() for name in names}
    lacking = ", ".join(label for label in known.labels if label not in folded)
    return (
        f"{source}: has no {lacking}, else the labels of {known.id!r}, and is read as such "
        f"(ferkit data convert --taxonomy {OWN} makes its {len(folded)} a label set of their own)"
    )


def in_taxonomy(
    source: str, labels: NDArray[np.int64], taxonomy: Taxonomy, wanted: str
) -> tuple[NDArray[np.int64], Taxonomy]:
    """Return the same labels, by their names in any case, as columns of another taxonomy.

    Args:
        source: For messages.
        labels: int64 ``[N]``, columns of ``taxonomy``.
        taxonomy: The labels' names.
        wanted: Id of a known taxonomy, or ``own`` for one of just the names that faces have.

    Raises:
        TaxonomyError: If there is no taxonomy ``wanted``, or fewer than two names are left.
        DataError: If faces have a name that it lacks.
    """
    present = np.unique(labels)
    if wanted == OWN:
        target = Taxonomy(OWN, tuple(sorted(taxonomy.labels[k] for k in present)))
        columns = {name: k for k, name in enumerate(target.labels)}
        names = taxonomy.labels
    else:
        target = get_taxonomy(wanted)
        columns = {name: k for k, name in enumerate(target.labels)}
        names = tuple(name.casefold() for name in taxonomy.labels)
    if foreign := [taxonomy.labels[k] for k in present if names[k] not in columns]:
        raise DataError(
            f"{source}: taxonomy {wanted!r} has no label {foreign[0]!r}; it has {', '.join(target.labels)}"
        )
    moved = np.array([columns.get(name, 0) for name in names], dtype=np.int64)
    return moved[labels], target
