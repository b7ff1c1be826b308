"""Recipes, the trainer, and the folder that a run leaves behind."""
