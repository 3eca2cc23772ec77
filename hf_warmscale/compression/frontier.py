"""The size of compressed models against their loss: which bits and which share of zeros pay."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.architecture import Role, describe
from hf_warmscale.checkpoints import (
    find_tokenizer,
    load_config,
    load_model,
    public_name,
    require_one_language,
    shared_ids,
)
from hf_warmscale.compression.compressed import Compression, compressed
from hf_warmscale.compression.frontier_row import FrontierRow, with_pareto_flags
from hf_warmscale.compression.magnitude import check_sparsity
from hf_warmscale.compression.pictures import draw_frontier
from hf_warmscale.compression.quantization import check_bits, check_group_size
from hf_warmscale.compression.storage import MODEL
from hf_warmscale.evaluation import DocumentNLL, EvaluationSet, NonFiniteLossError, PairedDifference, paired_bootstrap
from hf_warmscale.evaluation.evaluation_set import DEFAULT_BATCH_TOKENS, DEFAULT_MAX_LENGTH
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.resize.model_source import LiveModel
from hf_warmscale.staging import as_json, write_text

NamedOrLive = str | os.PathLike[str] | PreTrainedModel
FRONTIER_FILE, PICTURE_FILE = "frontier.json", "frontier.png"


@dataclass(frozen=True)
class Frontier:
    """Rows of size and loss.

    Args:
        rows (`tuple[FrontierRow, ...]`): for every model as it is stored, then for each sparsity and number of bits.
        reference (`str`): the model, as stored, that every difference is to.
        storage (`str`): how the bytes are counted.
        settings (`dict[str, Any]`): group size and roles.
        documents (`dict[str, Any]`): number, tokens and hash of the documents.

    Example:

    ```python
    >>> frontier = compression_frontier("HuggingFaceTB/SmolLM2-135M", bits=(8, 6, 4), sparsities=(0, 0.3),
    ...                                 documents=texts, tokenizer=tokenizer)
    >>> [(row.bits, row.sparsity, row.bytes) for row in frontier.pareto]
    ```
    """

    rows: tuple[FrontierRow, ...]
    reference: str
    storage: str
    settings: dict[str, Any]
    documents: dict[str, Any]

    @property
    def pareto(self) -> list[FrontierRow]:
        """The rows that no other beats, the smallest first."""
        return sorted((row for row in self.rows if row.pareto), key=lambda row: row.bytes)

    def table(self) -> list[dict[str, object]]:
        """Return a row of cells for each compressed model; the model is named if there are several."""
        several = len({row.model for row in self.rows}) > 1
        return [
            {
                **({"model": row.model} if several else {}),
                "bits": "stored" if row.bits is None else row.bits,
                "sparsity": f"{row.sparsity:g}",
                "MB": f"{row.bytes / 1e6:.4g}",
                "NLL": f"{row.nll:.4f}",
                "change": f"{row.difference.estimate:+.4f}",
                "interval": f"{row.difference.low:+.4f} to {row.difference.high:+.4f}" if number else None,
                "Pareto": row.pareto,
            }
            for number, row in enumerate(self.rows)  # the first is the reference itself
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        rows = [{**asdict(row), "difference": row.difference.to_dict()} for row in self.rows]
        return {
            "format_version": 1,
            **{name: value for name, value in vars(self).items() if name != "rows"},
            "rows": rows,
        }

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `frontier.json` and `frontier.png` into an existing folder and return their paths."""
        record, picture = Path(folder) / FRONTIER_FILE, Path(folder) / PICTURE_FILE
        write_text(record, as_json(self.to_dict()))
        draw_frontier(picture, self.rows, self.reference)
        return [record, picture]


def compression_frontier(
    models: NamedOrLive | Sequence[NamedOrLive] | Mapping[str, NamedOrLive],
    *,
    bits: Sequence[int],
    sparsities: Sequence[float],
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    group_size: int | None = None,
    prune_roles: Sequence[Role] = ("hidden",),
    quantize_roles: Sequence[Role] = ("embedding", "hidden", "readout"),
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    confidence: float = 0.95,
    seed: int = 0,
) -> Frontier:
    """Measure the size and the loss of models that are pruned and quantized after training (2002.11794).

    Every model is measured as it is stored, and with each number of bits at each share of zeros: the smallest weights
    of `prune_roles` are set to zero over all of them together, then the weights of `quantize_roles` are rounded (see
    [`fake_quantize`]). Nothing is trained and no model is written.

    Args:
        models (`str`, `PathLike`, `PreTrainedModel`, or a sequence or mapping of them): folders, Hub ids
            (`id@revision` too) or live models, which are not changed. A mapping names them.
        bits (`Sequence[int]`): 2 to 8; 16 is bfloat16 and 32 float32.
        sparsities (`Sequence[float]`): each in [0, 1).
        documents (`Sequence[str]`): held-out texts.
        tokenizer (`PreTrainedTokenizerBase`): of all the models.
        group_size (`int`, *optional*): inputs that share a scale; all inputs of a row by default.
        prune_roles (`Sequence[str]`): see [`Role`].
        quantize_roles (`Sequence[str]`): see [`Role`].
        max_length (`int`, *optional*): predictions in a window; by default 1024, or what the models take if less.
        batch_tokens (`int`): the most positions in a batch.
        confidence (`float`): of the paired bootstrap intervals.
        seed (`int`): of the bootstrap.

    Returns:
        `Frontier`: the rows; `save` writes them as JSON with a picture.

    Raises:
        ValueError: for a number of bits without a format, a sparsity outside [0, 1), a quantized model, documents that
            cannot be scored, or a tokenizer that is not the models'.
        FileNotFoundError: if a model does not exist.

    Example:

    ```python
    >>> frontier = compression_frontier("HuggingFaceTB/SmolLM2-135M", bits=(8, 6, 4), sparsities=(0, 0.3),
    ...                                 documents=texts, tokenizer=tokenizer)
    >>> frontier.save("frontier")
    ```
    """
    _check(bits, sparsities, group_size, (*prune_roles, *quantize_roles))
    sources = _named(models)
    length = max_length or min(_longest(source) for source in sources.values())
    held_out = EvaluationSet.from_documents(documents, tokenizer, max_length=length, batch_tokens=batch_tokens)
    grid = [(None, 0.0), *((each, share) for share in dict.fromkeys(sparsities) for each in dict.fromkeys(bits))]
    rows: list[FrontierRow] = []
    reference: DocumentNLL | None = None
    with tqdm(total=len(sources) * len(grid), desc="measuring", unit="model", leave=False) as bar:
        for name, source in sources.items():
            model = _load(source, name, tokenizer)
            described = describe(model.config)
            for each, share in grid:
                how = Compression(each, share, group_size, tuple(prune_roles), tuple(quantize_roles))
                with compressed(model, described, how) as size:
                    scores = _score(held_out, model)
                if reference is None and scores is None:
                    raise ValueError(f"{name} gives no finite loss as it is stored; load it in bfloat16 or float32.")
                reference = reference or scores
                assert reference is not None
                difference = _difference(scores, reference, confidence, seed)
                rows.append(FrontierRow(name, each, share, size, inf if scores is None else scores.mean, difference))
                bar.update()
    settings = {"group_size": group_size, "prune_roles": list(prune_roles), "quantize_roles": list(quantize_roles)}
    counted = {"documents": len(held_out), "tokens": held_out.num_tokens, "sha256": held_out.sha256}
    return Frontier(with_pareto_flags(rows), next(iter(sources)), MODEL, settings, counted)


def _check(bits: Sequence[int], sparsities: Sequence[float], group_size: int | None, roles: Sequence[str]) -> None:
    for each in bits:
        check_bits(each)
    for share in sparsities:
        check_sparsity(share)
    check_group_size(group_size)
    for role in roles:
        refuse_unknown("role", role, get_args(Role))


def _named(models: NamedOrLive | Sequence[NamedOrLive] | Mapping[str, NamedOrLive]) -> dict[str, NamedOrLive]:
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        named = {}
        sources = [models] if isinstance(models, str | os.PathLike | PreTrainedModel) else models
        for number, source in enumerate(sources, start=1):
            name = _name(source)
            named[name if name not in named else f"{name} ({number})"] = source
    if not named:
        raise ValueError("There is no model to compress; name at least one.")
    return named


def _name(source: NamedOrLive) -> str:
    if isinstance(source, PreTrainedModel):
        return public_name(source.config.name_or_path) if source.config.name_or_path else type(source).__name__
    return public_name(source)


def _longest(source: NamedOrLive) -> int:
    config: PreTrainedConfig = source.config if isinstance(source, PreTrainedModel) else load_config(source)
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(DEFAULT_MAX_LENGTH, positions or DEFAULT_MAX_LENGTH)


def _load(source: NamedOrLive, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the live model, after refusing what is quantized, damaged or of another language."""
    if isinstance(source, PreTrainedModel):
        model, own = LiveModel(source).model, find_tokenizer(source.config.name_or_path)
    else:
        model, own = load_model(source), find_tokenizer(source)
    if own is not None:
        require_one_language({"The given tokenizer": tokenizer, f"that of {name}": own})
    shared_ids({name: model.config.get_text_config(decoder=True).vocab_size}, {name: tokenizer})
    return model


def _score(held_out: EvaluationSet, model: PreTrainedModel) -> DocumentNLL | None:
    try:
        return held_out.nll(model)
    except NonFiniteLossError:
        return None


def _difference(scores: DocumentNLL | None, reference: DocumentNLL, confidence: float, seed: int) -> PairedDifference:
    if scores is None:
        return PairedDifference(inf, inf, inf, confidence)
    return paired_bootstrap(scores, reference, confidence=confidence, seed=seed)
