"""Search weights and beta on held-out text: the members as models that `search_merge` combines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import content_hash, find_tokenizer, load_tokenizer, refuse_non_finite
from hf_warmscale.decoding.members import Member
from hf_warmscale.decoding.modeling import EmulatedFineTuningForCausalLM
from hf_warmscale.merging import CheckpointWeights, MergeInput
from hf_warmscale.merging.search.spaces import Point, Range

SUM_TOLERANCE = 1e-9


class MemberSource:
    """The members of a combined model, as a `MergeSource`: the base, the reference, then the tuned models.

    The weights of a merge are the coefficients of the members' log-probabilities, which sum to 1: beta for the base,
    w_i for the tuned models, and the rest for the reference. Applying them sets these numbers and touches no tensor.

    Args:
        model (`EmulatedFineTuningForCausalLM`): its `weights` and `beta` are overwritten.

    Example:

    ```python
    >>> source, space = MemberSource(model), EmulatedSpace(1)
    >>> result = search_merge(source, space=space, select=documents[:200], confirm=documents[200:])
    >>> model.config.beta, model.config.weights
    ```
    """

    kind = "member"
    span: tuple[int | None, int | None] = (None, None)

    def __init__(self, model: EmulatedFineTuningForCausalLM) -> None:
        self.model: PreTrainedModel = model
        self._combined = model
        base, *tuned, reference = model.members
        self._members = (base, reference, *tuned)

    def __len__(self) -> int:
        return len(self._members)

    def check(self) -> list[MergeInput]:
        """Read every member once: refuse NaN, and return the record of each.

        Raises:
            ValueError: naming the member and the tensor that holds NaN or an infinity.
        """
        return [_record(member) for member in self._members]

    def base(self) -> None:
        """Return nothing: every member is a whole model."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the first tuned model, or that of the base.

        Raises:
            ValueError: if neither has one.
        """
        base, _, tuned, *_ = (member.plain.config.name_or_path or "" for member in self._members)
        if not base and not tuned:
            raise ValueError("The members were built in memory, without a tokenizer; pass tokenizer=...")
        return find_tokenizer(tuned) or load_tokenizer(base)

    def combine(self, weights: CheckpointWeights) -> None:
        """Set `weights` and `beta` of the model's config.

        Raises:
            ValueError: if the weights do not sum to 1 or are given by parameter.
        """
        if isinstance(weights, Mapping) or abs(sum(weights) - 1) > SUM_TOLERANCE:
            raise ValueError(f"The weights of the members are {weights}; give one number per member, 1 in all.")
        beta, _, *tuned = weights
        self._combined.config.beta, self._combined.config.weights = beta, tuned

    def write(self, folder: Path, weights: CheckpointWeights, *, max_shard_size: int | str) -> None:
        """Write the names of the members with these weights into an existing folder."""
        self.combine(weights)
        self._combined.write_members(folder)


@dataclass(frozen=True)
class EmulatedSpace:
    """Weights of the tuned models and beta.

    Args:
        count (`int`): the number of tuned models.
        most_weight (`float`): the largest weight of one.
        most_beta (`float`): the largest beta.

    Example:

    ```python
    >>> space = EmulatedSpace(count=1)
    >>> space.weights({"weight_0": 1.0, "beta": 0.5})  # of the base, the reference and the tuned model
    (0.5, -0.5, 1.0)
    ```
    """

    count: int = 1
    most_weight: float = 2.0
    most_beta: float = 2.0

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The sides of the box, by parameter."""
        weights = {f"weight_{index}": Range(0.0, self.most_weight) for index in range(self.count)}
        return {**weights, "beta": Range(0.0, self.most_beta)}

    def weights(self, point: Point) -> tuple[float, ...]:
        """Return the coefficients that a point stands for: of the base, the reference, and the tuned models."""
        beta, tuned = point["beta"], [point[f"weight_{index}"] for index in range(self.count)]
        # log p = s + sum w (t - s) + beta (l - s), sorted by member: s has what the others leave.
        return (beta, 1 - beta - sum(tuned), *tuned)

    def point(self, weights: Sequence[float]) -> Point | None:
        """Return the point with these coefficients, or `None` if it is outside the box."""
        beta, _, *tuned = weights
        point = {**{f"weight_{index}": weight for index, weight in enumerate(tuned)}, "beta": beta}
        inside = all(side.low <= point[name] <= side.high for name, side in self.ranges.items())
        return point if inside else None


def _record(member: Member) -> MergeInput:
    tensors = dict(member.model.state_dict())
    for name, tensor in tensors.items():
        refuse_non_finite(f"{name} of the {member.role} model", tensor)
    path = Path(member.plain.config.name_or_path or member.role)
    source = f"./{path.name}" if path.is_absolute() else str(path)
    # A reference with its adapter off has the tensors of the tuned model.
    digest = content_hash(tensors) if member.adapter else content_hash({**tensors, "adapter off": torch.empty(0)})
    return MergeInput(source, revision=None, step=None, sha256=digest)
