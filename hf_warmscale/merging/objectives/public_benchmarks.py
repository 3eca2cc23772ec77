"""Public test sets: a score on a test set on which merge weights were tuned is worthless."""

import re

PUBLIC_BENCHMARKS = frozenset(
    {
        "agieval",
        "aime",
        "arc",
        "arcchallenge",
        "arceasy",
        "bbh",
        "boolq",
        "ceval",
        "cmmlu",
        "commonsenseqa",
        "copa",
        "drop",
        "gpqa",
        "gsm8k",
        "hellaswag",
        "humaneval",
        "ifeval",
        "lambada",
        "livecodebench",
        "mbpp",
        "mgsm",
        "minervamath",
        "mmlu",
        "mmlupro",
        "musr",
        "naturalquestions",
        "openbookqa",
        "piqa",
        "sciq",
        "squad",
        "superglue",
        "swebench",
        "triviaqa",
        "truthfulqa",
        "winogrande",
    }
)


def refuse_public_benchmark(name: str, *, allow: bool = False) -> None:
    """Refuse the name of a public benchmark as an objective of the search.

    Args:
        name (`str`): of a task, a domain, a dataset or a file.
        allow (`bool`): accept it.

    Raises:
        ValueError: if the name, or a part of it, is that of a public benchmark.

    Example:

    ```python
    >>> refuse_public_benchmark("my_exam")  # with "data/gsm8k.jsonl" it raises
    ```
    """
    parts = [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part]
    # Runs of neighbouring parts, joined: `arc-challenge`, `arc_challenge` and `arcchallenge` are one benchmark, while
    # `march` is not `arc`.
    runs = {"".join(parts[start:end]) for start in range(len(parts)) for end in range(start + 1, len(parts) + 1)}
    found = sorted(runs & PUBLIC_BENCHMARKS, key=len)
    if found and not allow:
        raise ValueError(
            f"{name!r} is the public benchmark {found[-1]}: weights tuned on its test set make its score worthless. "
            "Tune on other held-out data, or pass allow_public_benchmarks."
        )
