"""Members that cannot be used together, and settings out of range, are refused in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    DynamicCache,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_warmscale.checkpoints import save_model
from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from tests.decoding.tiny import VOCAB, emulated, members, tiny, tokens

WORDS = ["[UNK]", *(f"w{number}" for number in range(1, VOCAB - 2))]
BERT: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save(folder: Path, model: PreTrainedModel, words: list[str]) -> PreTrainedModel:
    """Save a model with a tokenizer of whole words, and load it."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    save_model(model, folder, tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return loaded


def test_other_tokenizers(tmp_path: Path) -> None:
    base, reference, tuned = members()
    swapped = [*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]]
    base = save(tmp_path / "base", base, WORDS)
    reference, tuned = save(tmp_path / "small", reference, swapped), save(tmp_path / "tuned", tuned, swapped)
    with pytest.raises(
        ValueError, match=r"^base and tuned do not share a vocabulary: the token 'w5' has id 5 in base"
    ):
        EmulatedFineTuningForCausalLM(base, tuned, reference)


def test_rows_beyond_the_tokenizer_count_for_nothing(tmp_path: Path) -> None:
    base, reference, tuned = members()
    base.resize_token_embeddings(VOCAB + 24)  # as Qwen's 151,936 and 152,064 rows
    base = save(tmp_path / "base", base, WORDS)
    reference, tuned = save(tmp_path / "small", reference, WORDS), save(tmp_path / "tuned", tuned, WORDS)
    model = EmulatedFineTuningForCausalLM(base, tuned, reference)
    probabilities = model(input_ids=tokens() % len(WORDS)).logits.exp()
    assert probabilities.shape[-1] == VOCAB == model.config.get_text_config().vocab_size
    assert (probabilities[..., len(WORDS) :] == 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 9, dtype=probabilities.dtype))
    drafted = model.generate(tokens(rows=1) % len(WORDS), assistant_model=tuned, do_sample=False, max_new_tokens=8)
    plain = model.generate(tokens(rows=1) % len(WORDS), do_sample=False, max_new_tokens=8)
    assert drafted.tolist() == plain.tolist()


def test_rows_without_tokenizers_are_warned_of() -> None:
    base, reference, tuned = members()
    base.resize_token_embeddings(VOCAB + 24)
    with pytest.warns(UserWarning, match="no tokenizers to compare; the first 40 are used"):
        EmulatedFineTuningForCausalLM(base, tuned, reference)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: BertModel(BertConfig(**BERT)), "is a BertModel, which does not predict the next token"),
        (lambda: BertLMHeadModel(BertConfig(**BERT)), "is a BertLMHeadModel, which does not predict the next token"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=VOCAB, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
            ),
            "is a T5ForConditionalGeneration, which does not predict",
        ),
        (lambda: emulated(), "is itself a combination of models; use one of its members"),
        (lambda: torch.nn.Linear(2, 2), "is a Linear; pass a causal language model"),
        (lambda: torch.nn.Module.to(tiny(seed=0), "meta"), "has parameters on the meta device"),
        (
            lambda: get_peft_model(
                tiny(seed=0),
                PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, tokenizer_name_or_path="x"),
            ),
            "has a PROMPT_TUNING adapter, which adds tokens",
        ),
    ],
)
def test_what_is_no_member(model: Any, sentence: str) -> None:
    base, reference, tuned = members()
    with pytest.raises(ValueError, match=f"^The base model {sentence}"):
        EmulatedFineTuningForCausalLM(model(), tuned, reference)
    with pytest.raises(ValueError, match=f"^The reference model {sentence}"):
        EmulatedFineTuningForCausalLM(base, tuned, model())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": float("nan")}, "beta holds nan; give finite numbers"),
        ({"beta": float("inf")}, "beta holds inf"),
        ({"weights": [float("nan")]}, "weights holds nan"),
        ({"weights": [0.5, 0.5]}, r"weights has 2 numbers for 1 tuned model\(s\)"),
        ({"weights": []}, "weights has 0 numbers"),
        ({"upscale_top_p": 0.0}, "upscale_top_p is 0.0"),
        ({"upscale_top_p": 1.5}, "upscale_top_p is 1.5"),
        ({"upscale_top_p": float("nan")}, "upscale_top_p is nan"),
    ],
)
def test_settings(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        emulated(**settings)
    model = emulated()
    for name, value in settings.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        model(input_ids=tokens())


def test_missing_members() -> None:
    base, reference, tuned = members()
    with pytest.raises(ValueError, match=r"^There is no reference; pass the small base"):
        EmulatedFineTuningForCausalLM(base, tuned)
    with pytest.raises(ValueError, match=r"^tuned is an empty list"):
        EmulatedFineTuningForCausalLM(base, [], reference)


def test_an_assistant_of_another_vocabulary(tmp_path: Path) -> None:
    base, reference, tuned = members()
    model = EmulatedFineTuningForCausalLM(base, tuned, reference)
    other = tiny(seed=4)
    other.resize_token_embeddings(VOCAB + 8)
    with pytest.raises(ValueError, match=r"^The assistant has 48 logits and the combined model 40"):
        model.generate(tokens(rows=1), assistant_model=other, max_new_tokens=2)
    base = save(tmp_path / "base", base, WORDS)
    model = EmulatedFineTuningForCausalLM(
        base, save(tmp_path / "t", tuned, WORDS), save(tmp_path / "s", reference, WORDS)
    )
    other = save(tmp_path / "other", tiny(seed=4), [WORDS[0], *WORDS[:0:-1]])
    with pytest.raises(ValueError, match=r"^base and assistant do not share a vocabulary: the token"):
        model.generate(tokens(rows=1), assistant_model=other, max_new_tokens=2)


def test_a_prompt_beyond_a_window() -> None:
    base, reference, tuned = tiny(width=32, seed=0), tiny("gpt2", seed=1), tiny("gpt2", seed=2)
    base.config.max_position_embeddings = 128
    model = EmulatedFineTuningForCausalLM(base, tuned, reference)
    assert model.config.get_text_config().max_position_embeddings == 64
    for call in (model.generate, model):
        with pytest.raises(ValueError, match="tokens and the tuned model takes 64; shorten the prompt"):
            call(input_ids=tokens(length=65))


def test_caches_of_another_kind() -> None:
    model = emulated()
    with pytest.raises(ValueError, match=r"^The cache is a StaticCache, which several models cannot share"):
        model.generate(tokens(), max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match=r"^The cache is a StaticCache"):
        model(input_ids=tokens(), cache=StaticCache(config=model.base.config, max_cache_len=16))
    used = DynamicCache(config=model.base.config)
    model.base(input_ids=tokens(), cache=used)
    with pytest.raises(ValueError, match=r"^The cache holds the states of 2 layers, and the members have 4"):
        model(input_ids=tokens(), cache=used)


def test_a_model_with_a_cache_of_its_own() -> None:
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0)
    recurrent = MambaForCausalLM(config).double().eval()
    _, reference, tuned = members()
    model = EmulatedFineTuningForCausalLM(recurrent, tuned, reference)
    arguments: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    plain = model.generate(tokens(), use_cache=False, **arguments)
    try:
        cached = model.generate(tokens(), **arguments)
    except ValueError as error:
        assert str(error).startswith("The base model is a MambaForCausalLM, which does not keep its states")
    else:
        assert cached.tolist() == plain.tolist()


def test_prompts_of_single_members() -> None:
    model, x = emulated(), tokens(rows=1)
    with pytest.raises(ValueError, match=r"^Prompts of single members need the cache"):
        model.generate(x, tuned_input_ids=x, use_cache=False, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"^tuned_input_ids and assistant_model cannot be combined"):
        model.generate(x, tuned_input_ids=x, assistant_model=model.tuned[0], max_new_tokens=2)


def test_an_adapter_without_a_reference_is_enough_only_for_its_own_model() -> None:
    base, reference, tuned = members()
    adapted = get_peft_model(tuned, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match=r"^There is no reference"):
        EmulatedFineTuningForCausalLM(base, [reference, adapted])
