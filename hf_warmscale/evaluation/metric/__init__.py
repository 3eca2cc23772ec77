"""The folder to give to `evaluate.load`: it works without a network."""

from pathlib import Path

METRIC_PATH = str(Path(__file__).parent / "document_nll")
