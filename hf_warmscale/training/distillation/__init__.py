"""Train towards a teacher."""

from hf_warmscale.training.distillation.distillation_trainer import DistillationTrainer, HealingTrainer
from hf_warmscale.training.distillation.teacher_cache import TeacherCache

__all__ = ["DistillationTrainer", "HealingTrainer", "TeacherCache"]
