"""The learning rate, eps and weight decay factors of an exported model, for training it further."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_warmscale.architecture import Role
from hf_warmscale.checkpoints import write_json
from hf_warmscale.mup.parameter_scaling import ParameterScaling, plain_name
from hf_warmscale.mup.rules import OptimizerFactors, Parametrization

FILE_NAME = "mup_factors.json"


@dataclass(frozen=True)
class TrainingFactors:
    """The factors on the base learning rate, weight decay and eps of every parameter, by name.

    Args:
        factors (`Mapping[str, tuple[Role, OptimizerFactors]]`): the role and the factors of every parameter.

    Example:

    ```python
    >>> factors = training_factors(config)
    >>> factors.save(folder)
    >>> TrainingFactors.load(folder).find("model.norm.weight")[0]
    'final_norm'
    ```
    """

    factors: Mapping[str, tuple[Role, OptimizerFactors]]

    @classmethod
    def of(cls, scalings: Mapping[str, ParameterScaling], parametrization: Parametrization) -> "TrainingFactors":
        """Read them off the scalings of a model."""
        return cls({name: (scaling.role, scaling.factors(parametrization)) for name, scaling in scalings.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrainingFactors":
        """Read `mup_factors.json`.

        Args:
            path (`str` or `PathLike`): the file, or the folder of the exported model.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is not what [`save`] writes.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}; export the model with `warmscale mup export`.")
        try:
            groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
            return cls(
                {
                    name: (
                        group["role"],
                        # The init factor is not stored: the weights exist already.
                        OptimizerFactors(1.0, float(group["lr"]), float(group["weight_decay"]), float(group["eps"])),
                    )
                    for group in groups
                    for name in group["parameters"]
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of muP factors ({error}); export the model again.") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `mup_factors.json` to a folder: one entry per role and distinct factors, with its parameters."""
        members: dict[tuple[Role, float, float, float], list[str]] = {}
        for name, (role, own) in self.factors.items():
            members.setdefault((role, own.lr, own.weight_decay, own.eps), []).append(name)
        groups = [
            {"role": role, "lr": lr, "weight_decay": weight_decay, "eps": eps, "parameters": names}
            for (role, lr, weight_decay, eps), names in members.items()
        ]
        write_json(Path(folder) / FILE_NAME, {"groups": groups})

    def absorb(self, factors: Mapping[str, float]) -> "TrainingFactors":
        """Return what the parameters need once each weight is multiplied by its factor.

        See [`OptimizerFactors.absorb`].

        Raises:
            ValueError: if the factors are of other parameters.
        """
        if strange := factors.keys() ^ self.factors.keys():
            raise ValueError(f"{FILE_NAME} and the model differ in {min(strange)}; remove {FILE_NAME}, or its model.")
        return TrainingFactors({name: (role, own.absorb(factors[name])) for name, (role, own) in self.factors.items()})

    def find(self, name: str) -> tuple[Role, OptimizerFactors]:
        """Return the role and the factors of a parameter by its name, whatever wraps the model.

        Raises:
            ValueError: if the exported model has no such parameter.
        """
        plain = plain_name(name)
        if plain not in self.factors:
            raise ValueError(f"The parameter {name} has no muP factors; freeze it, or export the model again.")
        return self.factors[plain]
