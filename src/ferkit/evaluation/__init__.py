"""Measures, calibration, reports and pictures of how good a model is.

Fits need SciPy and pictures Matplotlib, of the extra ``train``; where they are not installed, a
:class:`ferkit.core.errors.MissingDependencyError` says so.
"""
