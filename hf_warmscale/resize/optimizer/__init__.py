"""Grow the state of an optimizer with its model."""
