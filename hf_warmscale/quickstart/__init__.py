"""The whole pipeline on real text that every installation has, on a CPU, in minutes."""

from hf_warmscale.quickstart.pipeline import run_quickstart

__all__ = ["run_quickstart"]
