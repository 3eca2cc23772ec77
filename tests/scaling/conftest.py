"""The public measurements, for the tests of this folder."""

from tests.scaling.measurements import data

__all__ = ["data"]
