"""Each function of `compat.peft` against the public behaviour that it stands for."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hf_warmscale.compat.peft import low_rank_layers, read_lora_config, scaled_product, switch_off, without_adapter

X = torch.arange(8.0).reshape(2, 4)


def adapted(**settings: object) -> PeftModel:
    """Two linear layers; the second one has a random adapter."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["1"], r=2, lora_alpha=3, **settings)  # type: ignore[arg-type]
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return model


def test_the_product_is_what_the_adapter_adds() -> None:
    model = adapted()
    (layer,) = low_rank_layers(model).values()
    with_adapter = model(X)
    switch_off(layer)
    product = scaled_product(layer, "default")
    assert product is not None
    torch.testing.assert_close(model(X) + model.base_model.model[0](X) @ product.T, with_adapter)  # type: ignore[index, operator]


def test_without_the_adapter_and_after_it_every_weight_is_as_trainable_as_before() -> None:
    model = adapted()
    frozen = [weight.requires_grad_(False) for name, weight in model.named_parameters() if "lora_A" in name]
    before = [weight.requires_grad for weight in model.parameters()]
    with without_adapter(model):
        alone = model(X)
    assert frozen and [weight.requires_grad for weight in model.parameters()] == before
    assert not torch.equal(model(X), alone)


def test_another_adapter_does_not_touch_the_layer() -> None:
    (layer,) = low_rank_layers(adapted()).values()
    assert scaled_product(layer, "another") is None


def test_a_layer_that_is_no_product_is_refused() -> None:
    model = get_peft_model(nn.Sequential(nn.Conv2d(1, 1, 1)), LoraConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match="is a Conv2d; merge it into its base first"):
        low_rank_layers(model)


def test_the_config_is_that_of_the_folder(tmp_path: Path) -> None:
    adapted().save_pretrained(str(tmp_path))
    assert read_lora_config(tmp_path).r == 2
    for damage in ("{", "[]", "{}", '{"peft_type": "NOTHING"}'):
        (tmp_path / "adapter_config.json").write_text(damage)
        with pytest.raises(ValueError, match=r"damaged|of type"):
            read_lora_config(tmp_path)
