"""What the private API of transformers must still do; a failure here names what changed."""

import importlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CONFIG_MAPPING,
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from hf_warmscale.compat.transformers import (
    CACHE_ARGUMENT,
    GENERATION_HOOKS,
    TRAINER_HOOKS,
    causal_lm_loss,
    convert,
    croppable_cache,
    dict_arguments,
    in_natural_order,
    loaded_name,
    loading_conversions,
    loss_shifts_labels,
    model_from_tensors,
    models_with_causal_lm_loss,
    renamed,
    replaced_loss,
    saved_name,
    saving_conversions,
    short_scans,
    without_partitioning,
)
from tests.training.tiny import NEW, arguments, tiny_model

GATE, UP = "model.layers.0.block_sparse_moe.experts.1.w1.weight", "model.layers.0.block_sparse_moe.experts.1.w3.weight"
PACKED = "model.layers.0.mlp.experts.gate_up_proj"


def mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    return MixtralForCausalLM(config)


def test_names_of_experts_in_files_become_one_name_of_the_model() -> None:
    model = mixtral()
    conversions = loading_conversions(model)
    keys = {loaded_name(name, conversions, model, model.state_dict()) for name in (GATE, UP)}
    assert {key for key, _ in keys} == {PACKED}
    assert all(pattern in conversions.by_pattern for _, pattern in keys)


def test_a_prefix_that_the_files_lack_is_added() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
    name, pattern = loaded_name("wte.weight", loading_conversions(model), model, model.state_dict())
    assert (name, pattern) == ("transformer.wte.weight", None)


def test_a_packed_tensor_is_saved_through_a_converter() -> None:
    conversions = saving_conversions(mixtral())
    key, pattern = saved_name(PACKED, conversions)
    assert pattern in conversions.by_pattern
    assert saved_name("model.norm.weight", conversions) == ("model.norm.weight", None)
    assert "block_sparse_moe" in renamed(key, conversions.renamings)


def test_a_conversion_there_and_back_is_the_identity() -> None:
    model = mixtral()
    loading, saving = loading_conversions(model), saving_conversions(model)
    packed = model.state_dict()[PACKED]
    key, pattern = saved_name(PACKED, saving)
    assert pattern is not None
    parts = convert(saving.by_pattern[pattern], key, [(PACKED, pattern, packed)], model)
    stored = {renamed(name, saving.renamings): value for name, value in parts.items()}
    assert len(stored) == 4 and GATE in stored and UP in stored
    found = [(name, *loaded_name(name, loading, model, model.state_dict())) for name in in_natural_order(stored)]
    given = [(name, pattern, stored[name]) for name, _, pattern in found if pattern is not None]
    (result,) = convert(loading.by_pattern[given[0][1]], PACKED, given, model).values()
    assert torch.equal(result, packed)


def test_a_model_of_given_tensors_is_whole_and_saves_as_its_family_does(tmp_path: Path) -> None:
    """`from_pretrained(None, state_dict=...)` takes them by the live names and tells what it missed."""
    source = mixtral()
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    model = model_from_tensors(MixtralForCausalLM, source.config, tensors, torch.float32)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert model.name_or_path == ""
    for each, folder in ((source, "source"), (model, "model")):
        each.save_pretrained(tmp_path / folder)
    files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("source", "model")]
    assert GATE in files[0] and files[0].keys() == files[1].keys()
    del tensors["model.norm.weight"]
    with pytest.raises(AssertionError, match=r"missing_keys.*model\.norm\.weight"):
        model_from_tensors(MixtralForCausalLM, source.config, tensors, torch.float32)


@pytest.mark.parametrize("method", ["_push_from_checkpoint", "push_to_hub"])
def test_the_trainer_uploads_through_the_function_that_is_replaced(method: str) -> None:
    assert "hf_api().upload_folder(" in inspect.getsource(getattr(Trainer, method))


def test_plain_families_need_no_conversion() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    assert {saved_name(name, saving_conversions(model)) for name in model.state_dict()} == {
        (name, None) for name in model.state_dict()
    }


def test_layers_are_in_natural_order() -> None:
    assert list(in_natural_order(["a.10.b", "a.2.b", "a.2.a"])) == ["a.2.a", "a.2.b", "a.10.b"]


@pytest.mark.parametrize("hook", list(TRAINER_HOOKS))
def test_the_trainer_has_the_methods_that_the_mixin_overrides(hook: str) -> None:
    method = getattr(Trainer, hook, None)
    assert method is not None, f"Trainer.{hook} is gone; ContinualMixin overrides it"
    found = tuple(inspect.signature(method).parameters)[1:]
    assert found == TRAINER_HOOKS[hook], f"Trainer.{hook} takes {found} now"


@pytest.mark.parametrize("hook", list(GENERATION_HOOKS))
def test_generation_has_the_methods_that_decoding_overrides(hook: str) -> None:
    method = getattr(GenerationMixin, hook, None)
    assert method is not None, f"GenerationMixin.{hook} is gone; EmulatedFineTuningForCausalLM overrides it"
    missing = set(GENERATION_HOOKS[hook]) - set(inspect.signature(method).parameters)
    assert not missing, f"GenerationMixin.{hook} does not take {missing} now"


def test_the_trainer_says_whether_labels_are_shifted(tmp_path: Path) -> None:
    assert loss_shifts_labels(Trainer(tiny_model(), arguments(tmp_path), train_dataset=NEW))


def test_training_arguments_read_named_fields_as_json(tmp_path: Path) -> None:
    @dataclass
    class Arguments(TrainingArguments):
        _VALID_DICT_FIELDS = dict_arguments("shares")
        shares: dict[str, float] | str | None = field(default=None)

    (parsed,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(  # type: ignore[arg-type]
        ["--output_dir", str(tmp_path), "--shares", '{"new": 0.5}']
    )
    assert parsed.shares == {"new": 0.5}


def test_models_call_a_loss_that_replaces_theirs() -> None:
    model = tiny_model(dropout=0.0)
    assert isinstance(model, LlamaForCausalLM)
    assert models_with_causal_lm_loss(torch.nn.Sequential(model)) == [model]
    assert model.loss_function is causal_lm_loss()
    tokens = torch.arange(8)[None]
    with replaced_loss([model], lambda logits, labels, **kwargs: logits.sum() * 0 + 7.0):
        assert float(model(input_ids=tokens, labels=tokens).loss.detach()) == 7.0
    assert model.loss_function is causal_lm_loss()
    assert float(model(input_ids=tokens, labels=tokens).loss.detach()) != 7.0


def test_models_are_built_whole_while_zero_3_is_configured() -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install hf-warmscale[deepspeed]")
    deepspeed = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        assert is_deepspeed_zero3_enabled()
        with without_partitioning():
            assert not is_deepspeed_zero3_enabled()
        assert is_deepspeed_zero3_enabled()
    finally:
        del deepspeed
    assert not is_deepspeed_zero3_enabled()


def test_models_take_and_return_a_cache_under_one_name() -> None:
    for model in (GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16)), mixtral()):
        output = model(input_ids=torch.tensor([[1, 2]]), use_cache=True)
        assert output[CACHE_ARGUMENT].get_seq_length() == 2
        assert CACHE_ARGUMENT in inspect.signature(model.forward).parameters


SCANS = {"qwen3_next": "torch_chunk_gated_delta_rule", "kimi_linear": "chunk_kimi_delta_attention"}


def test_a_draft_with_windows_can_be_cropped_after_several_passes() -> None:
    """The states that a layer hands out are as many as it has told the mask, and all of them come back."""
    config = MistralConfig(sliding_window=3, num_hidden_layers=2)
    cache, token = croppable_cache(config), torch.zeros(1, 1, 1, 1)
    for _ in range(5):
        expected = cache.get_mask_sizes(1, layer_idx=0)[0]
        assert cache.update(token, token, layer_idx=0)[0].shape[-2] == expected
        cache.update(token, token, layer_idx=1)
    cache.crop(-4)
    assert cache.get_seq_length() == 1
    assert cache.update(token, token, layer_idx=0)[0].shape[-2] == 2


@pytest.mark.parametrize("model_type", [each for each in SCANS if each in CONFIG_MAPPING])  # Kimi Linear is younger
def test_recurrent_mixers_scan_in_short_chunks_to_the_same_result(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    scan = getattr(
        module, {"qwen3_next": "torch_chunk_gated_delta_rule"}.get(model_type, "chunk_kimi_delta_attention")
    )
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 6, 2, 4)
    beta, decay = torch.rand(1, 6, 2), -torch.rand(1, 6, 2, *((4,) if model_type == "kimi_linear" else ()))
    whole, _ = scan(query, key, value, g=decay, beta=beta)
    with short_scans(config), _ShapesOf(torch.ops.aten.triu.default) as masks:
        short, _ = scan(query, key, value, g=decay, beta=beta)
    assert masks.shapes == {(4, 4)}
    torch.testing.assert_close(short, whole)
    assert inspect.unwrap(scan).__defaults__[0] == 64


class _ShapesOf(TorchDispatchMode):
    """Record the shapes of the first argument of an operation."""

    def __init__(self, operation: object) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operation, self.shapes = operation, set[tuple[int, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.operation:
            self.shapes.add(tuple(args[0].shape))
        return func(*args, **kwargs or {})
