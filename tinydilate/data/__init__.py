"""Data sets: images and a label for every pixel."""
