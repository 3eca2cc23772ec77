"""Train towards a teacher."""

from hf_warmscale.training.distillation.distillation_trainer import DistillationTrainer, HealingTrainer

__all__ = ["DistillationTrainer", "HealingTrainer"]
