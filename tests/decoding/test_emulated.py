"""Members used together: exact identities, one cache, one set of weights, every place that scores or generates."""

import itertools
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from hf_warmscale.compat.transformers import CACHE_ARGUMENT
from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from hf_warmscale.decoding.draft import Draft
from hf_warmscale.decoding.members import Member
from hf_warmscale.decoding.speculation import set_block_length
from hf_warmscale.evaluation import document_nll
from hf_warmscale.mup import MupConfig, MupForCausalLM
from tests.conftest import perturb
from tests.decoding.tiny import FAMILIES, HYBRIDS, VOCAB, emulated, log_probs, members, tiny, tokens
from tests.hub.tiny import tiny_tokenizer

EXACT = 1e-11
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}


def close(one: Tensor, two: Tensor, *, atol: float = EXACT) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=atol)


@pytest.mark.usefixtures("float64_norms")
class TestDistribution:
    @pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
    def test_the_formula(self, family: str) -> None:
        base, reference, tuned = members(family)
        model = EmulatedFineTuningForCausalLM(base=base, tuned=tuned, reference=reference, weights=[0.7], beta=1.2)
        large, small, better = (log_probs(each, tokens()) for each in (base, reference, tuned))
        expected = (small + 0.7 * (better - small) + 1.2 * (large - small)).log_softmax(dim=-1)
        close(model(input_ids=tokens()).logits, expected)

    def test_identities(self) -> None:
        base, reference, tuned = members()
        x = tokens()
        close(EmulatedFineTuningForCausalLM(reference, tuned, reference)(input_ids=x).logits, log_probs(tuned, x))
        close(EmulatedFineTuningForCausalLM(base, reference, reference)(input_ids=x).logits, log_probs(base, x))
        close(EmulatedFineTuningForCausalLM(base, tuned, reference, beta=0.0)(input_ids=x).logits, log_probs(tuned, x))

    def test_settings_change_at_any_time(self) -> None:
        base, reference, tuned = members()
        other = tiny(seed=5)
        model = EmulatedFineTuningForCausalLM(base, [tuned, other], reference)
        model.config.weights, model.config.beta = [0.0, 1.0], 0.0
        close(model(input_ids=tokens()).logits, log_probs(other, tokens()))

    def test_a_tilt_of_both_heads_is_emulated_exactly(self) -> None:
        config: dict[str, Any] = {
            "vocab_size": VOCAB,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "bos_token_id": None,
        }
        small, large = (
            PhiForCausalLM(PhiConfig(**config, hidden_size=width, num_hidden_layers=2, eos_token_id=None))
            .double()
            .eval()
            for width in (16, 32)
        )
        for seed, model in enumerate((small, large)):
            perturb(model, std=0.3, seed=seed)
        truth = {id(model): PhiForCausalLM(model.config).double().eval() for model in (small, large)}
        tilt = torch.randn(VOCAB, dtype=torch.float64)
        for model in (small, large):
            truth[id(model)].load_state_dict(model.state_dict())
            with torch.no_grad():
                truth[id(model)].lm_head.bias.add_(tilt)
        emulated_large = EmulatedFineTuningForCausalLM(base=large, tuned=truth[id(small)], reference=small)
        close(emulated_large(input_ids=tokens()).logits, log_probs(truth[id(large)], tokens()))

    def test_the_loss_is_the_mean_negative_log_likelihood(self) -> None:
        model, x = emulated(), tokens()
        expected = -log_probs(model, x)[:, :-1].gather(-1, x[:, 1:, None]).mean()
        close(model(input_ids=x, labels=x).loss.detach(), expected)


@pytest.mark.usefixtures("float64_norms")
class TestCache:
    @pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
    def test_cached_is_uncached(self, family: str) -> None:
        model, x = emulated(family), tokens(length=10)
        whole = log_probs(model, x)
        cache, seen = None, []
        for part in (
            x[:, :4],
            x[:, 4:5],
            x[:, 5:6],
            x[:, 6:],
        ):  # blocks after the prompt are what drafts are checked by
            if part.shape[1] > 1 and cache is not None and family in HYBRIDS:
                part = x[:, 6:7]  # a recurrent state takes one token at a time
            with torch.no_grad():
                output = model(input_ids=part, cache=cache, use_cache=True)
            cache = output[CACHE_ARGUMENT]
            seen.append(output.logits)
        found = torch.cat(seen, dim=1)
        close(found, whole[:, : found.shape[1]])

    @pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
    def test_left_padding_is_none_and_a_batch_is_its_rows(self, family: str) -> None:
        model, x = emulated(family), tokens(rows=3)
        x[0, :4] = 0
        x[1, :2] = 0
        mask = (x != 0).long()
        batch = model.generate(x, attention_mask=mask, output_scores=True, return_dict_in_generate=True, **GREEDY)
        for row, start in enumerate((4, 2, 0)):
            single = model.generate(
                x[row : row + 1, start:], output_scores=True, return_dict_in_generate=True, **GREEDY
            )
            assert batch.sequences[row, 9:].tolist() == single.sequences[0, 9 - start :].tolist()
            close(torch.stack(batch.scores)[:, row], torch.stack(single.scores)[:, 0], atol=1e-6)

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_beams_are_those_by_hand(self, family: str) -> None:
        model, x = emulated(family), tokens(rows=1, length=5)
        found = model.generate(
            x,
            num_beams=3,
            num_return_sequences=3,
            do_sample=False,
            max_new_tokens=5,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        sequences, scores = beams_by_hand(model, x, 3, 5)
        assert found.sequences.tolist() == sequences
        close(found.sequences_scores.double(), torch.tensor(scores, dtype=torch.float64), atol=1e-5)

    @pytest.mark.parametrize(("base", "small"), [("llama", "gemma3"), ("gpt2", "mistral"), ("gemma3", "opt")])
    def test_members_of_different_families(self, base: str, small: str) -> None:
        model = EmulatedFineTuningForCausalLM(tiny(base, 32, 2, seed=0), tiny(small, seed=2), tiny(small, seed=1))
        plain = model.generate(tokens(rows=1), use_cache=False, **GREEDY)
        assert model.generate(tokens(rows=1), **GREEDY).tolist() == plain.tolist()
        drafted = model.generate(tokens(rows=1), assistant_model=model.tuned[0], **GREEDY)
        assert drafted.tolist() == plain.tolist()


def beams_by_hand(model: nn.Module, prompt: Tensor, width: int, steps: int) -> tuple[list[list[int]], list[float]]:
    """Search without a cache, every beam anew."""
    beams = [(0.0, prompt[0].tolist())]
    for _ in range(steps):
        longer = []
        for score, sequence in beams:
            last = log_probs(model, torch.tensor([sequence]))[0, -1]
            longer += [(score + last[token].item(), [*sequence, token]) for token in range(VOCAB)]
        beams = sorted(longer, reverse=True)[:width]
    return [sequence for _, sequence in beams], [score for score, _ in beams]


class TestSpeculative:
    @pytest.mark.parametrize("length", [1, 4, 8])
    def test_drafted_greedy_is_greedy(self, length: int) -> None:
        model, prompts = emulated(), tokens(rows=20, length=6)
        plain = model.generate(prompts, **GREEDY)
        draft = model.tuned[0]
        assert isinstance(draft, PreTrainedModel)
        set_block_length(draft, length)
        for prompt, expected in zip(prompts, plain, strict=True):
            assert model.generate(prompt[None], assistant_model=draft, **GREEDY)[0].tolist() == expected.tolist()

    def test_the_bare_loop_drafts_what_generate_would(self) -> None:
        model, prompt = emulated(), tokens(rows=1, length=6)
        draft = model.tuned[0]
        assert isinstance(draft, PreTrainedModel)
        set_block_length(draft, 3)
        config = GenerationConfig(max_length=32, min_length=0, do_sample=False)
        both = (
            AssistedCandidateGenerator(prompt, draft, config, {"attention_mask": torch.ones_like(prompt)}),  # type: ignore[arg-type]
            Draft(Member("assistant", draft), config, LogitsProcessorList(), torch.ones_like(prompt)),
        )
        for accepted in (0, 1, 3):  # each time after the large model has added a token of its own
            (ids, scores), (expected, expected_scores) = [each.get_candidates(prompt) for each in both[::-1]]  # type: ignore[arg-type]
            assert ids.tolist() == expected.tolist()
            close(scores, expected_scores)
            prompt = torch.cat([ids[:, : prompt.shape[1] + accepted], torch.tensor([[5]])], dim=1)

    def test_a_padded_prompt_is_drafted_as_without_padding(self) -> None:
        model, prompt = emulated(), tokens(rows=1, length=6)
        padded = torch.nn.functional.pad(prompt, (4, 0))
        mask = torch.nn.functional.pad(torch.ones_like(prompt), (4, 0))
        plain = model.generate(prompt, **GREEDY)
        drafted = model.generate(padded, attention_mask=mask, assistant_model=model.tuned[0], **GREEDY)
        assert drafted[:, 4:].tolist() == plain.tolist()
        draft = Draft(
            Member("assistant", model.tuned[0]), GenerationConfig(max_length=32), LogitsProcessorList(), mask
        )
        alone = Draft(Member("assistant", model.tuned[0]), GenerationConfig(max_length=32), LogitsProcessorList())
        close(draft.get_candidates(padded)[1], alone.get_candidates(prompt)[1])

    @pytest.mark.slow
    def test_drafted_samples_have_the_exact_distribution(self) -> None:
        vocabulary, steps, draws = 4, 3, 1000
        small = {"vocab_size": vocabulary, "pad_token_id": None}
        models = [tiny(seed=seed) for seed in range(3)]
        for model in models:
            model.resize_token_embeddings(vocabulary)
            model.config.update(small)
        base, tuned, reference = models
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        set_block_length(tuned, 2)
        prompt = torch.tensor([[1, 2]])
        exact, draft = (sequence_probabilities(each, prompt, vocabulary, steps) for each in (model, tuned))
        counts = torch.zeros_like(exact)
        for _ in range(draws):
            drawn = model.generate(prompt, do_sample=True, top_k=0, max_new_tokens=steps, assistant_model=tuned)[0, 2:]
            counts[int((drawn * vocabulary ** torch.arange(steps - 1, -1, -1)).sum())] += 1
        variation = 0.5 * (counts / draws - exact).abs().sum()
        true_draws = torch.distributions.Multinomial(draws, exact).sample(torch.Size([2000]))
        chance = 0.5 * (true_draws / draws - exact).abs().sum(dim=-1)
        assert variation < chance.quantile(0.9995)
        assert 0.5 * (draft - exact).abs().sum() > 3 * chance.max()  # the draft alone would be found out

    @pytest.mark.parametrize("family", ["mistral", "gemma3"])
    def test_sliding_windows_are_rolled_back(self, family: str) -> None:
        model = emulated(family)
        for seed in range(5):
            x = tokens(rows=1, length=7, seed=seed)
            plain = model.generate(x, use_cache=False, **GREEDY)
            assert model.generate(x, assistant_model=model.tuned[0], **GREEDY).tolist() == plain.tolist()

    def test_recurrent_states_are_rolled_back_or_drafts_are_refused(self) -> None:
        model, x = emulated("lfm2"), tokens(rows=1)
        plain = model.generate(x, use_cache=False, **GREEDY)
        assert model.generate(x, assistant_model=model.tuned[0], **GREEDY).tolist() == plain.tolist()
        model = emulated("qwen3_next")
        with pytest.raises(ValueError, match=r"state of the base model \(Qwen3NextForCausalLM\) cannot forget"):
            model.generate(x, assistant_model=model.tuned[0], **GREEDY)

    @pytest.mark.parametrize("family", list(HYBRIDS))
    def test_hybrids_generate_with_a_cache(self, family: str) -> None:
        model = emulated(family)
        plain = model.generate(tokens(), use_cache=False, **GREEDY)
        assert model.generate(tokens(), **GREEDY).tolist() == plain.tolist()


def sequence_probabilities(model: nn.Module, prompt: Tensor, vocabulary: int, steps: int) -> Tensor:
    """Return the probability of every continuation, `[vocabulary ** steps]`."""
    found = []
    for continuation in itertools.product(range(vocabulary), repeat=steps):
        sequence = torch.cat([prompt, torch.tensor([continuation])], dim=1)
        each = log_probs(model, sequence)[0, prompt.shape[1] - 1 : -1]
        found.append(each.gather(-1, torch.tensor(continuation)[:, None]).sum().exp())
    return torch.stack(found)


class TestGenerate:
    def test_sampling_follows_the_seed(self) -> None:
        model = emulated()
        draws = []
        for _ in range(2):
            torch.manual_seed(1)
            draws.append(model.generate(tokens(), do_sample=True, top_p=0.9, max_new_tokens=6).tolist())
        assert draws[0] == draws[1]

    def test_criteria_processors_and_streamers(self) -> None:
        model, tokenizer = emulated(), tiny_tokenizer()
        x = tokens(rows=1)
        stop = StoppingCriteriaList([lambda ids, scores, **kwargs: torch.tensor([ids.shape[1] >= 12])])
        assert model.generate(x, stopping_criteria=stop, **GREEDY).shape[1] == 12
        seven = LogitsProcessorList([lambda ids, scores: scores.masked_fill(torch.arange(VOCAB) != 7, -torch.inf)])
        assert model.generate(x, logits_processor=seven, **GREEDY)[0, 9:].tolist() == [7] * 8
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        whole = model.generate(x, streamer=streamer, **GREEDY)
        assert "".join(streamer) == tokenizer.decode(whole[0, 9:])

    def test_the_end_of_the_tuned_model_ends(self) -> None:
        base, reference, tuned = members()
        tuned.generation_config.eos_token_id = [5, 6]
        tuned.generation_config.temperature = 0.1
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        assert model.generation_config.eos_token_id == [5, 6]
        assert model.generation_config.temperature in (None, 1.0)
        ends = LogitsProcessorList([lambda ids, scores: scores.masked_fill(torch.arange(VOCAB) != 6, -torch.inf)])
        assert model.generate(tokens(rows=1), logits_processor=ends, **GREEDY)[0, 9:].tolist() == [6]

    @pytest.mark.usefixtures("float64_norms")
    @pytest.mark.parametrize("beams", [1, 2])
    def test_the_tuned_model_may_see_another_prompt(self, beams: int) -> None:
        base, reference, tuned = members()
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        plain, chat = tokens(length=5), tokens(length=8, seed=9)
        chat[0, :2] = 0
        arguments = {"do_sample": False, "max_new_tokens": 4, "num_beams": beams}
        mask = (chat != 0).long()
        found = model.generate(plain, tuned_input_ids=chat, tuned_attention_mask=mask, **arguments)
        for row, start in enumerate((2, 0)):
            if beams == 1:
                expected = greedy_with_prompts(base, tuned, reference, plain[row], chat[row, start:], 4)
                assert found[row, 5:].tolist() == expected
        same = model.generate(plain, tuned_input_ids=plain, **arguments)
        assert same.tolist() == model.generate(plain, **arguments).tolist()


def greedy_with_prompts(
    base: nn.Module, tuned: nn.Module, reference: nn.Module, plain: Tensor, chat: Tensor, steps: int
) -> list[int]:
    """Decode by hand, every member with its own prompt and no cache."""
    produced: list[int] = []
    for _ in range(steps):
        new = torch.tensor(produced, dtype=torch.long)
        large, small = (log_probs(each, torch.cat([plain, new])[None])[0, -1] for each in (base, reference))
        better = log_probs(tuned, torch.cat([chat, new])[None])[0, -1]
        produced.append(int((large + better - small).argmax()))
    return produced


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits, as the quantization of transformers puts in the place of one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * self.get_buffer("scale")).T


class TestWeights:
    def test_no_weight_is_copied(self) -> None:
        base, reference, tuned = members()
        before = {p.data_ptr() for each in (base, reference, tuned) for p in each.parameters()}
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        model.generate(tokens(), **GREEDY)
        assert {p.data_ptr() for p in model.parameters()} == before
        assert model.base is base and model.tuned[0] is tuned and model.reference is reference

    @pytest.mark.usefixtures("float64_norms")
    def test_an_adapter_is_a_pair(self) -> None:
        base, small, _ = members()
        adapted = get_peft_model(small, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        assert isinstance(adapted, PeftModel)
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                nn.init.normal_(parameter, std=0.3)
        adapted.eval()
        on = log_probs(adapted, tokens())
        with adapted.disable_adapter():
            off = log_probs(adapted, tokens())
        model = EmulatedFineTuningForCausalLM(base=base, tuned=adapted)
        close(model(input_ids=tokens()).logits.detach(), (log_probs(base, tokens()) + on - off).log_softmax(-1))
        close(log_probs(adapted, tokens()), on)  # switched on again
        # peft has put the adapter into `small` itself: as the reference it is run without it.
        with_small = EmulatedFineTuningForCausalLM(base=base, tuned=adapted, reference=small)
        close(with_small(input_ids=tokens()).logits.detach(), model(input_ids=tokens()).logits.detach())
        with pytest.raises(ValueError, match=r"^The base model holds the adapter of a tuned model"):
            EmulatedFineTuningForCausalLM(base=small, tuned=adapted, reference=base)
        plain = model.generate(tokens(rows=1), use_cache=False, **GREEDY)
        for assistant in (None, adapted):
            assert model.generate(tokens(rows=1), assistant_model=assistant, **GREEDY).tolist() == plain.tolist()

    def test_quantized_members(self) -> None:
        base, reference, tuned = (each.float() for each in members())
        for layer in base.get_decoder().layers:
            layer.mlp.up_proj = Int8Linear(layer.mlp.up_proj)
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        large, better, small = (log_probs(each, tokens()) for each in (base, tuned, reference))
        close(log_probs(model, tokens()), (large + better - small).log_softmax(-1), atol=1e-4)
        assert model.generate(tokens(), **GREEDY).shape == (2, 17)

    @pytest.mark.usefixtures("float64_norms")
    def test_mup_members(self) -> None:
        sizes: dict[str, Any] = {
            "vocab_size": VOCAB,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        mup = {"base_hidden_size": 16, "base_num_hidden_layers": 2}
        models = [
            MupForCausalLM(MupConfig(**sizes, hidden_size=width, intermediate_size=2 * width, head_dim=4, mup=mup))
            for width in (32, 16, 16)
        ]
        for seed, model in enumerate(models):
            perturb(model.double(), std=0.3, seed=seed).train(False)
        base, tuned, reference = models
        large, better, small = (log_probs(each, tokens()) for each in models)
        close(
            log_probs(EmulatedFineTuningForCausalLM(base, tuned, reference), tokens()),
            (large + better - small).log_softmax(-1),
        )


class TestScoring:
    def test_documents(self) -> None:
        tokenizer, documents = tiny_tokenizer(), ["Growth keeps the function.", "Merging averages."]
        base, reference, tuned = members()
        for each in (base, reference, tuned):
            each.resize_token_embeddings(len(tokenizer))
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        scores = document_nll(model, documents, tokenizer)
        for nll, text in zip(scores.nll, documents, strict=True):
            ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]])
            expected = -log_probs(model, ids)[0, :-1].gather(-1, ids[0, 1:, None]).sum()
            assert abs(nll - expected.item()) < 1e-6 * expected.item()

    def test_lm_eval(self) -> None:
        lm_eval = pytest.importorskip("lm_eval.models.huggingface")
        from lm_eval.api.instance import Instance

        tokenizer = tiny_tokenizer()
        base, reference, tuned = (each.float() for each in members())
        for each in (base, reference, tuned):
            each.resize_token_embeddings(len(tokenizer))
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        harness = lm_eval.HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=2, max_length=64)
        request = Instance("loglikelihood", {}, ("Growth keeps", " the function."), 0)
        ((found, _),) = harness.loglikelihood([request], disable_tqdm=True)
        context, whole = (tokenizer(text).input_ids for text in ("Growth keeps", "Growth keeps the function."))
        ids = torch.tensor([whole])
        expected = log_probs(model, ids)[0, len(context) - 1 : -1].gather(-1, ids[0, len(context) :, None]).sum()
        assert abs(found - expected.item()) < 1e-3
