"""Labelled faces: readers, cache, audit, and faces drawn by the program."""
