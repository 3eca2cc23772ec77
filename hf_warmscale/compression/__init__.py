"""Make a trained model smaller: prune it, quantize it, search its sizes under a budget, and compare all of these."""

from hf_warmscale.compression.budget.healing import RecipeHealing
from hf_warmscale.compression.budget.search import shrink_to_budget
from hf_warmscale.compression.frontier import Frontier, compression_frontier
from hf_warmscale.compression.frontier_row import FrontierRow
from hf_warmscale.compression.pruning import MagnitudePruningCallback
from hf_warmscale.compression.quantization import fake_quantize, quantization_config

__all__ = [
    "Frontier",
    "FrontierRow",
    "MagnitudePruningCallback",
    "RecipeHealing",
    "compression_frontier",
    "fake_quantize",
    "quantization_config",
    "shrink_to_budget",
]
