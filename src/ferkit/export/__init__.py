"""From a run to a model file, from models to an ensemble file, and the cards of both.

The package shares its name with a function of the Python API, so it is callable:
``ferkit.export(run, data, path)`` is :func:`ferkit.export.run.export_run`. Without the libraries of the extra
``train``, it raises :class:`ferkit.core.errors.MissingDependencyError`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from ferkit.export.run import export_run

        return export_run(*arguments, **options)


export = sys.modules[__name__]
export.__class__ = _CallablePackage
