"""muP and CompleteP: one rule table, realised on Granite's fields or folded into any other family."""

from hf_warmscale.mup.configuration import MupConfig
from hf_warmscale.mup.export import ExportReceipt, export_checkpoint, training_factors
from hf_warmscale.mup.factors import TrainingFactors
from hf_warmscale.mup.fold import fold_multipliers
from hf_warmscale.mup.granite_form import FORWARD_MULTIPLIERS, is_mup
from hf_warmscale.mup.groups import mup_param_groups
from hf_warmscale.mup.initialization import init_mup
from hf_warmscale.mup.modeling import MupForCausalLM
from hf_warmscale.mup.muon import muon_param_groups, muon_shape_factor
from hf_warmscale.mup.optimizer import mup_optimizer
from hf_warmscale.mup.rules import OptimizerFactors, Parametrization, Power, Ratios, Rule, rule_table
from hf_warmscale.mup.table import Cell, TableRow, mup_table
from hf_warmscale.mup.weight_decay import WeightDecayRule, group_weight_decay
from hf_warmscale.options import RuleName

__all__ = [
    "FORWARD_MULTIPLIERS",
    "Cell",
    "ExportReceipt",
    "MupConfig",
    "MupForCausalLM",
    "OptimizerFactors",
    "Parametrization",
    "Power",
    "Ratios",
    "Rule",
    "RuleName",
    "TableRow",
    "TrainingFactors",
    "WeightDecayRule",
    "export_checkpoint",
    "fold_multipliers",
    "group_weight_decay",
    "init_mup",
    "is_mup",
    "muon_param_groups",
    "muon_shape_factor",
    "mup_optimizer",
    "mup_param_groups",
    "mup_table",
    "rule_table",
    "training_factors",
]
