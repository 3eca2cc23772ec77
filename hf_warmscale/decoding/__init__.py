"""Two or three sizes of one model used together at inference."""

from hf_warmscale.decoding.combination import combine_log_probs
from hf_warmscale.decoding.configuration import EmulatedFineTuningConfig
from hf_warmscale.decoding.modeling import EmulatedFineTuningForCausalLM
from hf_warmscale.decoding.router import UncertaintyRouter
from hf_warmscale.decoding.search import EmulatedSpace, MemberSource
from hf_warmscale.decoding.speculation import BlockSpeed, choose_block_length

__all__ = [
    "BlockSpeed",
    "EmulatedFineTuningConfig",
    "EmulatedFineTuningForCausalLM",
    "EmulatedSpace",
    "MemberSource",
    "UncertaintyRouter",
    "choose_block_length",
    "combine_log_probs",
]
