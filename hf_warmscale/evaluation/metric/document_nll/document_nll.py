"""Document likelihood as a metric of the `evaluate` library.

`evaluate.load` scans the imports of this file: `import a, b` on one line would break it.
"""

import datasets
import evaluate
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.evaluation import document_nll

_DESCRIPTION = """
Negative log-likelihood of whole documents under a causal language model: nats per token, perplexity and bits per
byte over all documents, and nats per document.
"""

_INPUTS = """
Args:
    predictions (`list[str]`): the documents.
    model (`str` or `PreTrainedModel`): a live causal LM, or the folder or name of one.
    tokenizer (`PreTrainedTokenizerBase`, *optional*): needed with a live model.
    max_length (`int`, *optional*): predictions in a window; by default 1024, or as many as the model takes.
    batch_tokens (`int`): positions in a batch, padding included, at most.

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
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
        if tokenizer is None:
            raise ValueError("A live model comes without its tokenizer; pass tokenizer=... as well.")
        scores = document_nll(model, predictions, tokenizer, max_length=max_length, batch_tokens=batch_tokens)
        return {
            **scores.summary(),
            "nll_per_document": scores.nll.tolist(),
            "tokens_per_document": scores.tokens.tolist(),
        }
