"""A task of lm-eval as the objective of a search; needs `pip install hf-warmscale[eval]`."""

import os
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.merging.objectives.objective import Loss
from hf_warmscale.merging.objectives.public_benchmarks import refuse_public_benchmark


def lm_eval_loss(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    metric: str = "acc",
    examples: Sequence[int] | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    include_path: str | os.PathLike[str] | None = None,
    allow_public_benchmarks: bool = False,
) -> Loss:
    """Return a function of the model that computes the loss of each example of an lm-eval task.

    The loss is `1 - metric` if higher is better, else the metric. Split a task between `select` and `confirm` by
    different `examples`.

    Args:
        task (`str`): a task that lm-eval knows or that a YAML file in `include_path` defines.
        tokenizer (`PreTrainedTokenizerBase`): the models'.
        metric (`str`): a metric of the task that has one number per example.
        examples (`Sequence[int]`, *optional*): indices of the examples; all by default.
        num_fewshot (`int`, *optional*): examples in the prompt; by default the task's own number.
        batch_size (`int`): requests in a batch.
        include_path (`str` or `PathLike`, *optional*): a folder of task files; then only these tasks are known.
        allow_public_benchmarks (`bool`): accept a public benchmark.

    Raises:
        ImportError: if lm-eval is not installed.
        ValueError: if the task is a public benchmark.

    Example:

    ```python
    >>> halves = [lm_eval_loss("my_exam", tokenizer, examples=range(start, 400, 2)) for start in (0, 1)]
    >>> search_merge(checkpoints, select=halves[0], confirm=halves[1])
    ```
    """
    refuse_public_benchmark(task, allow=allow_public_benchmarks)
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError("The objective needs lm-eval; run: pip install 'hf-warmscale[eval]'.") from error
    chosen = None if examples is None else [int(index) for index in examples]
    manager = TaskManager(
        include_path=None if include_path is None else os.fspath(include_path), include_defaults=include_path is None
    )

    def losses(model: PreTrainedModel) -> list[float]:
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=[task],
            task_manager=manager,
            num_fewshot=num_fewshot,
            samples=None if chosen is None else {task: chosen},
            log_samples=True,
            bootstrap_iters=0,
        )
        return _losses_of(results, task, metric)

    # A resumed study recognises its objective by this name.
    losses.__qualname__ = f"lm-eval {task} {metric} {num_fewshot} {chosen}"
    return losses


def _losses_of(results: dict[str, Any], task: str, metric: str) -> list[float]:
    # By document: a paired comparison needs the examples in one order in every call.
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    values = [sample.get(metric) for sample in samples]
    if not values or not all(isinstance(value, int | float) for value in values):
        known = sorted(results["higher_is_better"][task])
        raise ValueError(
            f"The task {task!r} has no number {metric!r} per example; its metrics are {', '.join(known)}."
        )
    more_is_better = results["higher_is_better"][task].get(metric, True)
    return [1.0 - float(value) if more_is_better else float(value) for value in values]
