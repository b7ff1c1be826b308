"""Measures, calibration, reports and pictures of how good a model is."""
