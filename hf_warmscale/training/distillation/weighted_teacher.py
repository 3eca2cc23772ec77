"""A teacher with its part of the loss: it is asked about the rows of a batch that it is heard on, and no others."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hf_warmscale.training.distillation.divergence import Direction
from hf_warmscale.training.distillation.mixed_loss import Pull
from hf_warmscale.training.distillation.row_keys import only_heard
from hf_warmscale.training.distillation.teacher import Teacher


@dataclass(frozen=True)
class WeightedTeacher:
    """A teacher with its part of the loss.

    Args:
        teacher (`Teacher`): whom to ask.
        weight, temperature, direction: see `Pull`.
    """

    teacher: Teacher
    weight: float
    temperature: float = 1.0
    direction: Direction = "forward"

    def on_all(self, inputs: Mapping[str, Tensor], keys: Tensor | None = None) -> Pull:
        """Return the pull on all rows."""
        return self._pull(inputs, keys)

    def where(
        self, inputs: Mapping[str, Tensor], heard: Tensor, keys: Tensor | None = None, *, whole: bool = False
    ) -> list[Pull]:
        """Return the pull on some rows or tokens, or none.

        Args:
            inputs (`Mapping[str, Tensor]`): of the whole batch.
            heard (`Tensor`): bool, `[rows]`, or `[1, tokens]` for rows that are laid end to end.
            keys (`Tensor`, *optional*): of the rows.
            whole (`bool`): ask about all rows, even if none of them counts.
        """
        if keys is not None and (whole or heard.dim() == 2):
            keys = only_heard(keys, heard)
        if heard.dim() == 2:
            # The source of a token stands where the token does, and is predicted one position before.
            return [self._pull(inputs, keys, mask=heard.roll(-1, dims=1))] if whole or bool(heard.any()) else []
        if whole:
            return [self._pull(inputs, keys, mask=heard[:, None].expand_as(inputs["input_ids"]))]
        rows = tuple(heard.nonzero()[:, 0].tolist())
        if not rows:
            return []
        if len(rows) == len(heard):
            return [self._pull(inputs, keys)]
        chosen = list(rows)
        part = {name: value[chosen] for name, value in inputs.items()}
        return [self._pull(part, None if keys is None else keys[chosen], rows=rows)]

    def _pull(
        self,
        inputs: Mapping[str, Tensor],
        keys: Tensor | None,
        rows: tuple[int, ...] | None = None,
        mask: Tensor | None = None,
    ) -> Pull:
        found = self.teacher.predict(inputs, keys)
        return Pull(found, self.weight, self.temperature, self.direction, rows, mask)
