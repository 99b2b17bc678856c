"""Signals to fit: coordinates, values and how well a reconstruction matches."""
