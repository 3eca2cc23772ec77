"""Document likelihood as a metric of the `evaluate` library.

`evaluate.load` scans the imports of this file: `import a, b` on one line would break it.
"""

import datasets
import evaluate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import load_model, load_tokenizer
from hf_warmscale.evaluation import document_nll

_DESCRIPTION = """
Negative log-likelihood of documents under a causal language model: nats per token, perplexity and bits per byte over
all documents, and nats per document.
"""

_INPUTS = """
Args:
    predictions (`list[str]`): the documents.
    model (`str` or `PreTrainedModel`): a live causal LM, a folder, or a Hub id with or without `@revision`.
    tokenizer (`PreTrainedTokenizerBase`, *optional*): needed with a live model.
    max_length (`int`, *optional*): predictions in a window; by default 1024, or fewer if the model has fewer
        positions.
    batch_tokens (`int`): the most positions in a batch, padding included.

Returns:
    `dict`: `nll` (nats per token), `perplexity`, `bits_per_byte`, `documents`, `tokens`, `bytes`, `documents_sha256`,
    and the lists `nll_per_document` (nats) and `tokens_per_document`.
"""


class DocumentNLLMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """Score documents with a causal LM; see [`hf_warmscale.document_nll`]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self,
        predictions: list[str],
        model: PreTrainedModel | str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        batch_tokens: int = 4096,
    ) -> dict[str, float | int | str | list[float] | None]:
        if isinstance(model, str):
            tokenizer = tokenizer or load_tokenizer(model)
            model = load_model(model)
        if tokenizer is None:
            raise ValueError("A live model does not know its tokenizer; pass tokenizer=... too.")
        scores = document_nll(model, predictions, tokenizer, max_length=max_length, batch_tokens=batch_tokens)
        return {
            **scores.summary(),
            "nll_per_document": scores.nll.tolist(),
            "tokens_per_document": scores.tokens.tolist(),
        }
