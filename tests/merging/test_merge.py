"""Merging stored checkpoints into a new folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from hf_warmscale.checkpoints import open_checkpoint, save_model
from hf_warmscale.merging.merge import WITH_BASE, merge_checkpoints
from hf_warmscale.merging.methods import linear, model_stock, slerp, task_arithmetic, ties
from hf_warmscale.merging.weights import lawa_weights, power_weights
from hf_warmscale.options import MERGE_METHODS, MergeMethod
from tests.conftest import perturb
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer


def near(model: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    perturb(model, std=0.02, seed=seed)
    return model


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three checkpoints of one run and, before them, their base."""
    save_model(tiny_llama(), tmp_path / "base")
    for step in (1, 2, 3):
        model = near(tiny_llama(), step)
        model.config.use_cache = False
        save_model(model, tmp_path / f"checkpoint-{step}", tokenizer=tiny_tokenizer())
    return sorted(tmp_path.iterdir())


def weight(folder: Path, name: str = "model.layers.1.mlp.up_proj.weight") -> torch.Tensor:
    return open_checkpoint(folder).tensor(name).clone()


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_every_method_gives_a_stock_model(method: MergeMethod, folders: list[Path], tmp_path: Path) -> None:
    base, *checkpoints = folders
    checkpoints = checkpoints[:2] if method == "slerp" else checkpoints
    receipt = merge_checkpoints(
        checkpoints, tmp_path / "out", method=method, base=base if method in WITH_BASE else None
    )
    assert open_checkpoint(tmp_path / "out").specs == open_checkpoint(base).specs
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.use_cache and model.config.architectures == ["LlamaForCausalLM"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abc").input_ids == tiny_tokenizer()("abc").input_ids
    parts = [weight(folder) for folder in checkpoints]
    start, merged = weight(base), weight(tmp_path / "out")
    expected = {
        "linear": lambda: linear(parts, [1 / 3] * 3),
        "slerp": lambda: slerp(parts[0], parts[1], 0.5),
        "task_arithmetic": lambda: task_arithmetic(start, parts, [1.0] * 3),
        "ties": lambda: ties(start, parts, [1.0] * 3, density=0.5),
        "model_stock": lambda: model_stock(start, parts),
    }
    if method == "dare":
        moved = (merged - start).abs() > 0
        assert 0.7 < moved.double().mean() < 0.98  # each of three drops a half: 7 of 8 entries move
    else:
        torch.testing.assert_close(merged, expected[method]())
    assert json.loads((tmp_path / "out" / "merge_result.json").read_text())["inputs"][0]["step"] == 1
    assert (not receipt.weights) == (method == "model_stock")
    assert [item.sha256 for item in receipt.inputs] == [
        open_checkpoint(folder).content_hash() for folder in checkpoints
    ]


def test_order_changes_nothing(folders: list[Path], tmp_path: Path) -> None:
    base, *checkpoints = folders
    methods: tuple[MergeMethod, ...] = ("linear", "ties", "dare")
    for method in methods:
        for index, order in enumerate((checkpoints, checkpoints[::-1])):
            origin = None if method == "linear" else base
            merge_checkpoints(order, tmp_path / f"{method}{index}", method=method, base=origin)
        forth, back = (open_checkpoint(tmp_path / f"{method}{index}") for index in range(2))
        for name, tensor in forth.tensors():
            torch.testing.assert_close(tensor, back.tensor(name), rtol=2**-23, atol=1e-9)


def test_weights_of_a_trajectory(folders: list[Path], tmp_path: Path) -> None:
    for name, weights in {"lawa": lawa_weights(3, 2), "wsm": power_weights(3, 2.0)}.items():
        merge_checkpoints(folders[1:], tmp_path / name, weights=weights)
        expected = sum(w * weight(folder) for w, folder in zip(weights, folders[1:], strict=True))
        torch.testing.assert_close(weight(tmp_path / name), expected)


def test_shards_are_bounded(folders: list[Path], tmp_path: Path) -> None:
    merge_checkpoints(folders[1:], tmp_path / "out", max_shard_size="10KB")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() == tiny_llama().num_parameters()


def spoil(folder: Path, value: float = torch.nan) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class TestRefusals:
    """One sentence, and nothing at the output."""

    def refused(self, message: str, checkpoints: list[Path], output: Path, **settings: object) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            merge_checkpoints(checkpoints, output, **settings)  # type: ignore[arg-type]
        assert not output.exists()

    def test_nan(self, folders: list[Path], tmp_path: Path) -> None:
        spoil(folders[2])
        self.refused(r"up_proj.weight of .*checkpoint-2 holds NaN", folders[1:], tmp_path / "out")

    def test_infinity_in_the_base(self, folders: list[Path], tmp_path: Path) -> None:
        spoil(folders[0], torch.inf)
        self.refused("base holds NaN or an inf", folders[1:], tmp_path / "out", method="ties", base=folders[0])

    def test_one_checkpoint(self, folders: list[Path], tmp_path: Path) -> None:
        self.refused("at least two checkpoints", folders[:1], tmp_path / "out")

    def test_a_missing_checkpoint(self, folders: list[Path], tmp_path: Path) -> None:
        self.refused("There is no folder", [folders[0], tmp_path / "nothing"], tmp_path / "out")

    def test_another_architecture(self, folders: list[Path], tmp_path: Path) -> None:
        save_model(GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2)), tmp_path / "gpt")
        self.refused("llama against gpt2", [folders[1], tmp_path / "gpt"], tmp_path / "out")

    def test_another_vocabulary(self, folders: list[Path], tmp_path: Path) -> None:
        save_model(tiny_llama(vocab_size=300), tmp_path / "wide")
        self.refused("258 and 300 entries, so rows", [folders[1], tmp_path / "wide"], tmp_path / "out")

    def test_another_size(self, folders: list[Path], tmp_path: Path) -> None:
        save_model(tiny_llama(intermediate_size=32), tmp_path / "wide")
        self.refused(r"intermediate_size \(24 against 32\)", [folders[1], tmp_path / "wide"], tmp_path / "out")

    def test_another_dtype(self, folders: list[Path], tmp_path: Path) -> None:
        save_model(tiny_llama().bfloat16(), tmp_path / "short")
        self.refused("save both in one dtype", [folders[1], tmp_path / "short"], tmp_path / "out")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"method": "soup"}, "'soup' is unknown; choose one of linear"),
            ({"method": "slerp"}, "slerp merges two checkpoints, not 3"),
            ({"method": "ties"}, r"pass base="),
            ({"weights": [0.5, 0.5]}, "2 weights for 3"),
            ({"weights": [0.5, 0.5, 0.5]}, "sum to 1.5"),
            ({"weights": [0.5, float("nan"), 0.5]}, "One of the weights is nan; give finite numbers"),
            ({"density": 0.0}, "density is 0.0"),
        ],
    )
    def test_settings(self, settings: dict[str, object], message: str, folders: list[Path], tmp_path: Path) -> None:
        self.refused(message, folders[1:], tmp_path / "out", **settings)

    def test_a_base_that_is_not_used(self, folders: list[Path], tmp_path: Path) -> None:
        self.refused("does not use a base", folders[1:], tmp_path / "out", base=folders[0])

    def test_weights_of_model_stock(self, folders: list[Path], tmp_path: Path) -> None:
        settings = {"method": "model_stock", "base": folders[0], "weights": [1.0, 1.0, 1.0]}
        self.refused("finds its own weights", folders[1:], tmp_path / "out", **settings)

    def test_an_output_that_is_in_use(self, folders: list[Path], tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("keep")
        with pytest.raises(ValueError, match="not empty"):
            merge_checkpoints(folders[1:], tmp_path / "out")
        assert (tmp_path / "out" / "mine").read_text() == "keep"
