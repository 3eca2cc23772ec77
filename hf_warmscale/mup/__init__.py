"""muP and CompleteP: one rule table, realised on Granite's fields or folded into any other family."""

from hf_warmscale.mup.configuration import MupConfig
from hf_warmscale.mup.factors import TrainingFactors
from hf_warmscale.mup.groups import mup_param_groups
from hf_warmscale.mup.initialization import init_mup
from hf_warmscale.mup.modeling import MupForCausalLM
from hf_warmscale.mup.rules import Parametrization, Power, Ratios, Rule, RuleName, Setting, rule_table
from hf_warmscale.mup.weight_decay import WeightDecayRule, group_weight_decay

__all__ = [
    "MupConfig",
    "MupForCausalLM",
    "Parametrization",
    "Power",
    "Ratios",
    "Rule",
    "RuleName",
    "Setting",
    "TrainingFactors",
    "WeightDecayRule",
    "group_weight_decay",
    "init_mup",
    "mup_param_groups",
    "rule_table",
]
