"""The error classes of ferkit: each message says what was received, what was expected and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls, line separators, bidirectional overrides and lone surrogates (undecodable bytes)."""


def escape_control(text: str) -> str:
    r"""Return ``text`` with every character that could steer a terminal as a backslash escape.

    Example:
        >>> escape_control("a\x1b[31mb\n")
        'a\\x1b[31mb\\n'
    """
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def near_matches(name: str, names: Iterable[str]) -> str:
    """Return a question with the names that are most similar to an unknown one; empty if none is.

    Example:
        >>> near_matches("predct", ["predict", "train"])
        "did you mean 'predict'?"
    """
    import difflib

    near = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


class FerkitError(Exception):
    """Base of every error that ferkit raises on purpose; the command line prints it and exits with 1."""

    def __str__(self) -> str:
        """Return the message on one line, with control characters (of file names, for example) escaped."""
        return escape_control(super().__str__())


class TaxonomyError(FerkitError):
    """A label or a set of labels that is unknown or invalid."""


class ImageError(FerkitError):
    """A picture that cannot be read or used."""


class VideoError(FerkitError):
    """A clip that cannot be read, or an empty range of it."""


class DataError(FerkitError):
    """A data set that cannot be read, or that holds invalid values."""


class ModelFileError(FerkitError):
    """A model file that is damaged, has no valid metadata, or does not return what its metadata says."""


class ModelError(FerkitError):
    """An architecture that is unknown or cannot be built with the given parameters."""


class RecipeError(FerkitError):
    """A recipe with an unknown key, a value out of range, or keys that contradict each other."""


class TrainingError(FerkitError):
    """A training run that cannot start, continue or be saved."""


class SearchError(FerkitError):
    """An invalid search space, or a search that cannot start or continue."""


class DetectorError(FerkitError):
    """A face detector that is unknown, missing or fails."""


class OutputError(FerkitError):
    """A file or folder that cannot be written."""


class MissingDependencyError(FerkitError):
    """A library that is needed and not installed, or does not load; the message says what to install."""
