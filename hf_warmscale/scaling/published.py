"""Published constants: good for ratios between options, not for the loss of your own runs."""

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.scaling.scaling_law import ScalingLaw

CONSTANTS: dict[str, tuple[str, dict[str, float]]] = {
    "hoffmann": (
        "Hoffmann et al., 2203.15556, unrounded",
        {"E": 1.693373, "A": 406.40, "alpha": 0.33917084, "B": 410.72, "beta": 0.2849083},
    ),
    "besiroglu": (
        "Besiroglu et al., 2404.10102",
        {"E": 1.81686, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},
    ),
}


def published(name: str = "besiroglu") -> ScalingLaw:
    """Return a law with published constants: of Chinchilla's models, data and vocabulary, with embeddings in N.

    Args:
        name (`str`): `"besiroglu"`, the corrected fit, or `"hoffmann"`, the original one.

    Raises:
        ValueError: for another name.

    Example:

    ```python
    >>> law = published()
    >>> law.predict(N=1e9, D=2e10) < law.predict(N=1e9, D=1e10)
    True
    ```
    """
    refuse_unknown("published law", name, CONSTANTS)
    source, parameters = CONSTANTS[name]
    flag = f"published constants ({source}): compare options by them, do not expect their losses"
    return ScalingLaw("chinchilla", dict(parameters), flags=[flag], embeddings=True, source=source)
