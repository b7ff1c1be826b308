"""The one error tree: every message says what was received, what was expected and what to do."""

from __future__ import annotations

import re

# C0 and C1 controls, line separators, bidirectional overrides and lone surrogates (undecodable bytes).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control(text: str) -> str:
    r"""Return ``text`` with every character that could steer a terminal as a backslash escape.

    Example:
        >>> escape_control("a\x1b[31mb\n")
        'a\\x1b[31mb\\n'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class FerkitError(Exception):
    """Base of every error that ferkit raises on purpose; the command line prints it and exits with 1."""


class TaxonomyError(FerkitError):
    """A label or a label set that does not fit."""


class ImageError(FerkitError):
    """A picture that cannot be read or used."""


class VideoError(FerkitError):
    """A clip that cannot be read, or a range of it that is empty."""


class DataError(FerkitError):
    """A data set that cannot be read, or rows in it that are wrong."""


class ModelFileError(FerkitError):
    """A model file that is damaged, lacks its metadata, or does not answer as it should."""


class ModelError(FerkitError):
    """An architecture that is unknown or cannot be built from what was asked."""


class RecipeError(FerkitError):
    """A recipe with an unknown key, a value out of range, or keys that contradict each other."""


class TrainingError(FerkitError):
    """A training run that cannot start, go on or be saved."""


class SearchError(FerkitError):
    """A search space that contradicts itself, or a search that cannot start or go on."""


class DetectorError(FerkitError):
    """A face detector that is unknown, missing or fails."""


class OutputError(FerkitError):
    """A file or folder that cannot be written."""


class MissingDependencyError(FerkitError):
    """An optional library that the request needs is not installed; the message names the extra."""
