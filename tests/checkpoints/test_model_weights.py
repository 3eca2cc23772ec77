"""By the names of the model, a checkpoint is its state dict, whatever transformers does on loading."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_warmscale.checkpoints import ModelWeights, ModelWriter, TensorSpec, open_checkpoint, skeleton
from tests.checkpoints.tiny import FAMILIES, load_completely, stored_tensors, tiny_config, tiny_folder, tiny_model

FILE = "model.safetensors"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_dict_and_back(tmp_path: Path, family: str, sharded: bool) -> None:
    """Read by the model's names, written by them: the same files as `save_pretrained` makes, to the bit."""
    size = "4KB" if sharded else "5GB"
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "source", max_shard_size=size)
    weights = ModelWeights(open_checkpoint(tmp_path / "source"))
    expected = stored_tensors(model)
    assert list(weights.specs) == list(expected)
    assert weights.specs == {name: TensorSpec.of(tensor) for name, tensor in expected.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.tensors())

    (tmp_path / "target").mkdir()
    with ModelWriter(tmp_path / "target", skeleton(tiny_config(family)), weights.specs, max_shard_size=size) as writer:
        for name in reversed(list(weights.specs)):
            writer.write(name, weights.tensor(name))
    source, target = (open_checkpoint(tmp_path / folder) for folder in ("source", "target"))
    assert target.content_hash() == source.content_hash()


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "llama tied"])
def test_another_dtype(tmp_path: Path, family: str) -> None:
    """What is written in bfloat16 is what transformers loads in bfloat16."""
    model = tiny_model(family)
    specs = {name: TensorSpec(tuple(tensor.shape), torch.bfloat16) for name, tensor in stored_tensors(model).items()}
    with ModelWriter(tmp_path, skeleton(model.config), specs) as writer:
        for name in specs:
            writer.write(name, model.state_dict()[name].bfloat16())
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(tmp_path)
    expected = model.state_dict()
    loaded = load_completely(tmp_path).state_dict()
    assert all(torch.equal(tensor, expected[name].bfloat16()) for name, tensor in loaded.items())


def test_fused_experts_name_their_sources(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    weights = ModelWeights(open_checkpoint(tmp_path))
    sources = weights.sources("model.layers.0.mlp.experts.down_proj")
    assert sources == tuple(f"model.layers.0.block_sparse_moe.experts.{number}.w2.weight" for number in range(3))


def test_a_checkpoint_of_the_inner_model(tmp_path: Path) -> None:
    """GPT-2's published files lack the prefix `transformer.` and hold buffers that no model has any more."""
    model = tiny_model("gpt2")
    model.config.save_pretrained(tmp_path)
    expected = stored_tensors(model)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in expected.items()}
    save_file({**bare, "h.0.attn.bias": torch.ones(1)}, tmp_path / FILE, metadata={"format": "pt"})
    weights = ModelWeights(open_checkpoint(tmp_path))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.tensors())
    assert weights.specs.keys() == expected.keys()


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_tensor_that_the_model_has_no_place_for_is_named(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    save_file({**load_file(folder / FILE), "v_head.weight": torch.ones(2)}, folder / FILE)
    with pytest.warns(UserWarning, match=r"1 tensors of .* do not belong to the model .*, among them v_head\.weight"):
        weights = ModelWeights(open_checkpoint(folder))
    assert "v_head.weight" not in weights.specs


def test_a_block_too_many_is_refused(tmp_path: Path) -> None:
    """`from_pretrained` would load the first blocks, and the loss of such a model is no longer that of the whole."""
    folder = tiny_folder(tmp_path / "model")
    change_config(folder, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"holds model\.layers\.1\..*, and its config\.json says fewer blocks"):
        ModelWeights(open_checkpoint(folder))


def test_buffers_that_old_files_hold_are_not_worth_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = tiny_folder(tmp_path / "model")
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(2) for layer in range(2)}
    save_file({**load_file(folder / FILE), **old}, folder / FILE)
    ModelWeights(open_checkpoint(folder))
    assert not [warning for warning in recwarn if "do not belong" in str(warning.message)]


class TestTied:
    def test_both_names_stored_and_equal(self, tmp_path: Path) -> None:
        weights = ModelWeights(open_checkpoint(self._with_head(tmp_path, scale=1.0)))
        assert "lm_head.weight" not in weights.specs

    def test_both_names_stored_and_different(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight, but their values"):
            ModelWeights(open_checkpoint(self._with_head(tmp_path, scale=2.0)))

    def test_stored_under_the_other_name(self, tmp_path: Path) -> None:
        folder = self._with_head(tmp_path, scale=2.0, drop="model.embed_tokens.weight")
        expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()["model.embed_tokens.weight"]
        weights = ModelWeights(open_checkpoint(folder))
        assert torch.equal(weights.tensor("model.embed_tokens.weight"), expected)

    def _with_head(self, tmp_path: Path, *, scale: float, drop: str | None = None) -> Path:
        folder = tiny_folder(tmp_path / "model")
        tensors = load_file(folder / FILE)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * scale
        kept = {name: tensor for name, tensor in tensors.items() if name != drop}
        save_file(kept, folder / FILE, metadata={"format": "pt"})
        return folder


class TestRefusals:
    def test_a_missing_tensor(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        tensors = load_file(folder / FILE)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / FILE)
        with pytest.raises(ValueError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"):
            ModelWeights(open_checkpoint(folder))

    @pytest.mark.parametrize(("field", "value"), [("vocab_size", 48), ("intermediate_size", 32)])
    def test_a_config_of_another_size(self, tmp_path: Path, field: str, value: int) -> None:
        folder = tiny_folder(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, field: value}))
        with pytest.raises(ValueError, match=rf"has the shape \[.*\], its config\.json says \[.*{value}"):
            ModelWeights(open_checkpoint(folder))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.float8_e4m3fn])
    def test_a_weight_that_is_no_float(self, tmp_path: Path, dtype: torch.dtype) -> None:
        folder = tiny_folder(tmp_path / "model")
        tensors = load_file(folder / FILE)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
        save_file(tensors, folder / FILE)
        with pytest.raises(
            ValueError, match=rf"model\.norm\.weight .* is stored as {str(dtype)[6:]}\[16\], which is a quantized"
        ):
            ModelWeights(open_checkpoint(folder))

    def test_a_config_that_fits_no_model(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": -16}))
        with pytest.raises(ValueError, match=r"No causal LM can be built of this llama config: .*negative"):
            ModelWeights(open_checkpoint(folder))

    def test_a_quantized_checkpoint(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
        with pytest.raises(ValueError, match="has a quantization_config, but its weights are not quantized; remove"):
            ModelWeights(open_checkpoint(folder))
        tensors = load_file(folder / FILE)
        name = "model.layers.0.mlp.up_proj.weight"
        save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / FILE)
        with pytest.raises(ValueError, match="is quantized; dequantize and save it first"):
            ModelWeights(open_checkpoint(folder))

    def test_names_that_the_model_lacks(self, tmp_path: Path) -> None:
        weights = ModelWeights(open_checkpoint(tiny_folder(tmp_path / "model")))
        with pytest.raises(ValueError, match=r"has no tensor lm_head\.weight"):
            weights.tensor("lm_head.weight")
        (tmp_path / "target").mkdir()
        writer = ModelWriter(tmp_path / "target", skeleton(tiny_config()), weights.specs)
        with pytest.raises(ValueError, match=r"lm_head\.weight was not announced"):
            writer.write("lm_head.weight", torch.ones(1))
        with pytest.raises(ValueError, match=r"not float32\[16\] as announced"):
            writer.write("model.norm.weight", torch.ones(1))
