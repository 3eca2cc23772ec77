"""The printed table: one row per set of factors and a reason each; the formulas' values are those of the groups."""

import pytest
from transformers import GPT2Config, OPTConfig

from hf_warmscale.mup import Parametrization, mup_table
from tests.mup.tiny import tiny_mup


def test_four_times_as_wide_and_twice_as_deep() -> None:
    rows = {(row.role, row.place): row for row in mup_table(tiny_mup().config)}
    hidden = rows["hidden", "block"]
    assert str(hidden.init) == "σ·m_in^-0.5 = 0.5"
    assert str(hidden.lr) == "η/m_in = 0.25"
    assert str(hidden.weight_decay) == "λ·m_in = 4"
    assert str(hidden.eps) == "ε/m_N/m_L = 0.125"
    assert str(hidden.muon_lr) == "η·m_in^-0.5·m_out^0.5 = 1"
    assert str(hidden.muon_weight_decay) == "λ·m_in^0.5·m_out^-0.5 = 1"
    assert str(hidden.muon_eps) == "ε/m_L = 0.5"
    assert str(rows["readout", "outside"].multiplier) == "α_out/m_N = 0.25"
    assert str(rows["residual branch", "forward"].multiplier) == "1/m_L = 0.5"
    assert str(rows["norm", "block"].eps) == "ε/m_N/m_L = 0.125"
    assert str(rows["final_norm", "outside"].eps) == "ε/m_N = 0.25"
    assert rows["norm", "block"].muon_lr is None
    assert all(row.reason for row in rows.values())
    assert sum(row.parameters for row in rows.values()) == len(list(tiny_mup().parameters()))


def test_what_starts_at_zero_says_so() -> None:
    config = tiny_mup().config
    rows = mup_table(config.with_mup(zero_init_query=True))
    zero = [(row.parameters, row.example) for row in rows if row.role == "hidden" and str(row.init) == "0"]
    assert zero == [(config.num_hidden_layers, "model.layers.0.self_attn.q_proj.weight")]


def gpt2(width: int, layers: int) -> GPT2Config:
    return GPT2Config(
        n_embd=width,
        n_layer=layers,
        n_head=width // 8,
        n_inner=2 * width,
        n_positions=32,
        vocab_size=48,
        bos_token_id=0,
        eos_token_id=0,
    )


def test_a_tied_family_with_its_own_forward_pass() -> None:
    """What the forward pass lacks stands in the rows: 1/m_L where the blocks write, 1/m_N at the final norm."""
    rows = mup_table(gpt2(64, 4), base_config=gpt2(16, 2), parametrization=Parametrization())
    writers = [row for row in rows if "holds 0.5" in row.reason and row.role == "hidden"]
    assert [str(row.lr) for row in writers] == ["η/m_in·0.5 = 0.125"]
    assert [str(row.init) for row in writers] == ["σ·m_in^-0.5·0.5 = 0.25"]
    (final,) = (row for row in rows if row.role == "bias" and row.place == "outside")
    assert str(final.eps) == "ε/m_N/0.25 = 1"
    assert str(final.init) == "0"
    assert not any(row.place == "forward" or row.multiplier for row in rows)


@pytest.mark.parametrize("rule", ["mup", "standard"])
def test_formulas_name_only_what_the_rule_sees(rule: str) -> None:
    config = tiny_mup().config.with_mup(rule=rule)
    formulas = " ".join(str(value) for row in mup_table(config) for value in row.cells().values())
    assert "m_L" not in formulas
    assert ("m_in" in formulas) == (rule == "mup")


@pytest.mark.parametrize(
    ("tied", "message"),
    [(True, "ties its readout and has no gain in front of it"), (False, "residual branches of opt cannot be")],
)
def test_a_family_whose_parts_cannot_be_identified_is_refused(tied: bool, message: str) -> None:
    """OPT with its norms after the sums: no final norm to take the readout's factor, no branch of its own."""
    wide, base = (
        OPTConfig(
            hidden_size=width,
            ffn_dim=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 8,
            word_embed_proj_dim=width,
            vocab_size=48,
            max_position_embeddings=32,
            do_layer_norm_before=False,
            tie_word_embeddings=tied,
        )
        for width, layers in ((32, 4), (16, 2))
    )
    with pytest.raises(ValueError, match=message):
        mup_table(wide, base_config=base)
