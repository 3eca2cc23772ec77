"""The router takes the head that fits each sequence; forced to one side it is that head exactly."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hf_warmscale.decoding import UncertaintyRouter
from hf_warmscale.decoding.uncertainty import best_threshold, mean_entropy, mean_kl
from tests.decoding.test_refusals import BERT
from tests.decoding.tiny import VOCAB, log_probs, tiny, tokens
from tests.fake_device import DEVICE, DeviceWithoutFloat64

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5}


@pytest.fixture
def adapted() -> PeftModel:
    """A model whose adapter changes what it says."""
    model = get_peft_model(
        tiny(width=32, depth=2, seed=0), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, PeftModel)
    return model.eval()


def generated(model: PeftModel, x: Tensor, **options: Any) -> Tensor:
    """Generate without the router."""
    generate: Callable[..., Tensor] = model.generate
    return generate(input_ids=x, **options)


def head(model: PeftModel, x: Tensor, *, robust: bool) -> Tensor:
    if robust:
        return log_probs(model, x)
    with model.disable_adapter():
        return log_probs(model, x)


@pytest.mark.parametrize(("threshold", "robust"), [(float("inf"), False), (float("-inf"), True)])
@pytest.mark.parametrize("criterion", ["kl", "entropy"])
def test_forced_to_one_side(adapted: PeftModel, threshold: float, robust: bool, criterion: Any) -> None:
    router = UncertaintyRouter(adapted, criterion=criterion, threshold=threshold)
    expected = head(adapted, tokens(), robust=robust)
    torch.testing.assert_close(router(tokens()).logits.log_softmax(-1).detach(), expected, rtol=0, atol=0)
    produced = router.generate(tokens(), **GREEDY)
    if robust:
        assert produced.tolist() == generated(adapted, tokens(), **GREEDY).tolist()
    else:
        with adapted.disable_adapter():
            assert produced.tolist() == generated(adapted, tokens(), **GREEDY).tolist()


def test_a_batch_may_mix_routes(adapted: PeftModel) -> None:
    x = tokens(rows=6)
    router = UncertaintyRouter(adapted)
    router.threshold = float(router.scores(x).median())
    robust = router.route(x)
    assert robust.any() and not robust.all()
    heads = [head(adapted, x, robust=False), head(adapted, x, robust=True)]
    expected = torch.where(robust[:, None, None], heads[1], heads[0])
    torch.testing.assert_close(router(x).logits.log_softmax(-1).detach(), expected)
    produced = router.generate(x, **GREEDY)
    for row in range(6):
        assert produced[row].tolist() == router.generate(x[row : row + 1], **GREEDY)[0].tolist()
    with pytest.raises(ValueError, match=r"^The batch needs both heads, and num_return_sequences"):
        router.generate(x, num_return_sequences=2, do_sample=True, max_new_tokens=2)


@pytest.mark.parametrize("criterion", ["kl", "entropy"])
def test_padding_does_not_count(adapted: PeftModel, criterion: Any) -> None:
    x, router = tokens(), UncertaintyRouter(adapted, criterion=criterion)
    padded = torch.cat([x, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones_like(x), torch.zeros(2, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(router.scores(padded, mask), router.scores(x), rtol=0, atol=1e-6)


def test_padding_on_the_left_shifts_no_position() -> None:
    """GPT-2 looks its positions up in a table."""
    model = get_peft_model(
        tiny("gpt2", width=32, depth=2, seed=0, dtype=torch.float32), LoraConfig(r=2, task_type="CAUSAL_LM")
    ).eval()
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter, std=0.3)
    x, reference = tokens(), tiny("gpt2", width=16, depth=1, seed=1, dtype=torch.float32)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), x], dim=1)
    mask = torch.cat([torch.zeros(2, 4, dtype=torch.long), torch.ones_like(x)], dim=1)
    for other in (None, reference):
        router = UncertaintyRouter(model, reference=other, threshold=0.0)
        torch.testing.assert_close(router.scores(padded, mask), router.scores(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(router(padded, mask).logits[:, 4:], router(x).logits, rtol=0, atol=1e-5)


def test_the_reference_is_followed(adapted: PeftModel) -> None:
    """The reference is one of the heads, with padding rows that count for nothing, and it may be on another device."""
    heads = {False: tiny(width=32, depth=2, seed=0), True: copy.deepcopy(adapted).merge_and_unload()}
    for robust, reference in heads.items():
        reference.float().train()
        with pytest.warns(UserWarning, match="have .* rows and no tokenizers"):
            reference.resize_token_embeddings(VOCAB + 8)
            router = UncertaintyRouter(adapted, reference=reference)
        assert router.threshold == 0.0 and not reference.training
        assert router.route(tokens()).tolist() == [robust, robust]
        with DeviceWithoutFloat64():
            nn.Module.to(reference, DEVICE)
            assert router.route(tokens()).tolist() == [robust, robust]


@torch.no_grad()
def test_a_float64_reference_beside_a_device_without_it(adapted: PeftModel) -> None:
    x, reference = tokens(), tiny(width=16, depth=1, seed=1).double()
    router = UncertaintyRouter(adapted.float(), reference=reference)
    expected = router.scores(x)
    with DeviceWithoutFloat64():
        nn.Module.to(adapted, DEVICE)
        torch.testing.assert_close(router.scores(x.to(DEVICE)).cpu().float(), expected.float(), rtol=0, atol=1e-4)


def test_calibration_minimises_the_loss_of_the_mix(adapted: PeftModel) -> None:
    with torch.no_grad():
        clean_text = sample(adapted, 12, robust=False)
        robust_text = sample(adapted, 12, robust=True)
    router = UncertaintyRouter(adapted)
    batches = [{"input_ids": clean_text}, {"input_ids": robust_text}]
    router.calibrate(batches)
    best = routed_loss(router, batches)
    for threshold in [float("-inf"), float("inf"), *router.scores(torch.cat([clean_text, robust_text])).tolist()[::4]]:
        router.threshold = threshold
        assert best <= routed_loss(router, batches) + 1e-4


def sample(model: PeftModel, rows: int, *, robust: bool) -> Tensor:
    """Draw sequences from one head."""
    arguments: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 10}
    prompt = tokens(rows=rows, length=2)
    if robust:
        return generated(model, prompt, **arguments)
    with model.disable_adapter():
        return generated(model, prompt, **arguments)


def routed_loss(router: UncertaintyRouter, batches: list[dict[str, Tensor]]) -> float:
    total = 0.0
    for batch in batches:
        x = batch["input_ids"]
        logits = router(x).logits.detach().log_softmax(-1)
        total -= float(logits[:, :-1].gather(-1, x[:, 1:, None]).sum())
    return total


def test_scores_by_hand() -> None:
    first, second = (torch.randn(1, 3, VOCAB, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    mask = torch.tensor([[1, 1, 0]])
    entropy = -(first.exp() * first).sum(-1)[0, :2].mean()
    divergence = (first.exp() * (first - second)).sum(-1)[0, :2].mean()
    torch.testing.assert_close(mean_entropy(first, mask)[0], entropy)
    torch.testing.assert_close(mean_kl(first, second, mask)[0], divergence)


def test_the_best_threshold() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0])
    clean, robust = torch.tensor([9.0, 1.0, 4.0, 1.0]), torch.tensor([1.0, 9.0, 1.0, 3.0])
    assert best_threshold(scores, clean, robust) == 1.5  # 3 and the two of 2: 5 is less than 6 at 2.5
    assert best_threshold(scores, clean, clean + 1) == float("inf")
    assert best_threshold(scores, clean, clean - 1) == float("-inf")
    with DeviceWithoutFloat64():
        assert best_threshold(scores.to(DEVICE), clean.to(DEVICE), robust.to(DEVICE)) == 1.5


def test_refusals(adapted: PeftModel) -> None:
    with pytest.raises(ValueError, match="which has no adapter to switch off"):
        UncertaintyRouter(tiny(seed=0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="There is no criterion 'entrop'; did you mean 'entropy'"):
        UncertaintyRouter(adapted, criterion="entrop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="looks at the model alone"):
        UncertaintyRouter(adapted, criterion="entropy", reference=tiny(seed=1))
    with pytest.raises(ValueError, match=r"^The reference model is a BertModel, which does not predict"):
        UncertaintyRouter(adapted, reference=BertModel(BertConfig(**BERT)))
    for itself in (adapted, adapted.get_base_model()):  # peft has put the adapter into the base
        with pytest.raises(ValueError, match=r"^The reference is the model itself, adapter and all"):
            UncertaintyRouter(adapted, reference=itself)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^The router has no threshold"):
        UncertaintyRouter(adapted).route(tokens())
    with pytest.raises(ValueError, match=r"^There are no sequences to calibrate on"):
        UncertaintyRouter(adapted).calibrate([])
