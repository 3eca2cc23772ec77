"""A card tells where a model comes from and what it measured, and nothing about the machine it was made on."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_warmscale.checkpoints import Receipt, write_json
from hf_warmscale.checkpoints.portable import portable, portable_json
from hf_warmscale.compression.budget.receipt import BudgetSearchReceipt
from hf_warmscale.decoding.receipt import CombinationReceipt
from hf_warmscale.hub import make_card
from hf_warmscale.hub.cards import KINDS
from hf_warmscale.merging import MergeReceipt, MergeResult
from hf_warmscale.mup import ExportReceipt
from hf_warmscale.resize import GrowthReceipt, ShrinkReceipt
from hf_warmscale.training import StageRecord


def stored(path: str) -> dict[str, Any]:
    """Return what version 0.1.0 wrote."""
    content: dict[str, Any] = json.loads((Path(__file__).parents[1] / path).read_text(encoding="utf-8"))
    return content


GROWTH = stored("resize/receipts_of_0_1_0/growth_receipt.json") | {"source": "org/base"}
SHRINK = stored("resize/receipts_of_0_1_0/shrink_receipt.json")
STAGE = stored("training/fixtures/stage-0.1.0.json")
MERGE = stored("merging/format_0_1_0/merge_result.json") | {
    "inputs": [
        {"source": "org/base", "revision": "3f2a", "step": None, "sha256": "00ff"},
        {"source": "org/other", "revision": "77ab", "step": None, "sha256": "11ee"},
    ],
    "domains": [
        {"domain": "english", "metric": "nll", "before": 3.0, "after": 2.9, "interval": [-0.12, -0.08]},
        {"domain": "code", "metric": "nll", "before": 2.0, "after": 2.1, "interval": [0.05, 0.15]},
    ],
}
EXPORT = {"source": "org/base", "to": "llama", "tensors": 9, "factors": {"lm_head": 0.5}, "exact": True, "limits": []}
COMBINATION = {
    "members": [
        {"role": role, "source": source, "revision": None, "adapter": None}
        for role, source in (("base", "org/large"), ("tuned", "./tuned"), ("reference", None))
    ],
    "weights": None,
    "beta": 1.0,
    "upscale_top_p": None,
}
CUT = {"how": "search", "sizes": {"num_hidden_layers": 26}, "parameters": 99_867_456, "spent": 99_867_456, "nll": 3.93}
AGAINST = {"nll": 4.031, "difference": {"estimate": 1.076, "low": 1.0, "high": 1.2, "confidence": 0.95}}
SEARCH = {
    "budget": {"kind": "parameters", "amount": 100_000_000},
    "candidates": [CUT] * 30,
    "front": [CUT],
    "judged": [{**CUT, "report": AGAINST}],
    "winner": {**CUT, "report": AGAINST},
    "source_nll": 2.955,
    "select": {"documents": 24, "tokens": 900, "sha256": "00ff"},
    "report": {"documents": 25, "tokens": 901, "sha256": "11ee"},
    "calibration_tokens": 4096,
    "seed": 0,
}
EXAMPLES: dict[type[Receipt], dict[str, Any]] = {
    GrowthReceipt: GROWTH,
    ShrinkReceipt: SHRINK,
    BudgetSearchReceipt: SEARCH,
    StageRecord: STAGE,
    MergeResult: MERGE,
    MergeReceipt: stored("merging/format_0_1_0/merge_receipt.json"),
    ExportReceipt: EXPORT,
    CombinationReceipt: COMBINATION,
}


def with_paths(content: Any) -> Any:
    """Return plain values in which every text is a path and every sentence names one; names of choices stay."""
    if isinstance(content, dict):
        choices = ("width", "depth", "how", "method", "rescale", "to", "optimizer", "metric", "role", "kind")
        return {key: value if key in choices else with_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [with_paths(value) for value in content]
    return f"/home/me/runs/{content.partition(' ')[0]}, {content}" if isinstance(content, str) else content


@pytest.mark.parametrize("kind", KINDS)
def test_every_receipt_meets_the_protocol(kind: type[Receipt], tmp_path: Path) -> None:
    """It comes back as it was, makes a card, names no path wherever it held one, and refuses a newer version."""
    receipt = kind.from_dict(EXAMPLES[kind])
    written = json.loads(json.dumps(receipt.to_dict()))
    assert kind.recognises(written) and kind.from_dict(written).to_dict() == written
    write_json(tmp_path / kind.file_name, with_paths(EXAMPLES[kind]))
    card = str(make_card(tmp_path))
    assert f"## {kind.title}" in card and kind.tag in metadata(make_card(tmp_path))["tags"]
    assert "/home" not in card and "runs" not in card
    assert "/home" not in json.dumps(kind.from_dict(with_paths(EXAMPLES[kind])).to_dict())
    with pytest.raises(ValueError, match=f"format version 99, and .* up to {kind.format_version}; update"):
        kind.from_dict({**EXAMPLES[kind], "format_version": 99})


def metadata(card: ModelCard) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(str(card).split("---")[1])
    return content


def test_a_grown_model(tmp_path: Path) -> None:
    write_json(tmp_path / "growth_receipt.json", GROWTH)
    card = make_card(tmp_path, repo_id="me/grown")
    assert metadata(card) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["hf_warmscale", "model-growth"],
    }
    sizes = f"{GROWTH['source_parameters']:,} to {GROWTH['parameters']:,} parameters"
    assert f"Grown from `org/base`, {sizes}" in str(card)
    assert 'from_pretrained("me/grown")' in str(card)


def test_a_model_whose_sizes_were_searched(tmp_path: Path) -> None:
    """The card has the winner and what it lost, not every candidate; healing counts where there was one."""
    write_json(tmp_path / "budget_search.json", SEARCH)
    card = make_card(tmp_path, repo_id="me/small")
    assert "within 100,000,000 parameters: the best of 30 candidates. On 25 documents" in str(card)
    assert "it is 1.076 nats per token above its source." in str(card)
    assert "nll | 2.955 | 4.031 | +1 to +1.2 |" in str(card)
    block = yaml.safe_load(str(card).split("```yaml\n")[1].split("```")[0])
    assert block["candidates"] == 30 and block["winner"] == SEARCH["winner"]
    healed = {"report": {**AGAINST, "nll": 3.275}, "minus_unhealed": AGAINST["difference"]}
    write_json(tmp_path / "budget_search.json", {**SEARCH, "healed": healed})
    assert "nll | 2.955 | 3.275 |" in str(make_card(tmp_path)) and "after healing." in str(make_card(tmp_path))


def test_a_merged_model(tmp_path: Path) -> None:
    write_json(tmp_path / "merge_result.json", MERGE)
    card = make_card(tmp_path, repo_id="me/merged")
    data = metadata(card)
    assert data["base_model"] == ["org/base", "org/other"]
    assert data["base_model_relation"] == "merge"
    assert data["tags"] == ["hf_warmscale", "merge"]
    assert data["model-index"][0]["name"] == "merged"
    values = {
        result["dataset"]["name"]: (result["metrics"][0]["type"], result["metrics"][0]["value"])
        for result in data["model-index"][0]["results"]
    }
    assert values == {"english": ("nll", 2.9), "code": ("nll", 2.1)}
    assert "| english | nll | 3 | 2.9 | -0.12 to -0.08 |" in str(card)
    block = yaml.safe_load(str(card).split("```yaml\n")[1].split("```")[0])
    assert block == {"format_version": 1} | {name: value for name, value in MERGE.items() if name != "domains"}


def test_a_merge_that_was_not_accepted(tmp_path: Path) -> None:
    """The folder holds the best single checkpoint, so its scores are those of `before`."""
    verdict = "No merge: the winner is not better beyond chance."
    write_json(tmp_path / "merge_result.json", {**MERGE, "accepted": False, "best_single": 0, "verdict": verdict})
    card = make_card(tmp_path, repo_id="me/single")
    assert metadata(card)["base_model_relation"] == "finetune" and metadata(card)["base_model"] == "org/base"
    results = metadata(card)["model-index"][0]["results"]
    assert [result["metrics"][0]["value"] for result in results] == [3.0, 2.0]
    assert verdict in str(card)


def test_all_receipts_in_the_order_of_the_work(tmp_path: Path) -> None:
    write_json(tmp_path / "merge_result.json", MERGE)
    write_json(tmp_path / "growth_receipt.json", GROWTH)
    write_json(tmp_path / "stage.json", STAGE)
    card = make_card(tmp_path)
    assert metadata(card)["tags"] == ["hf_warmscale", "model-growth", "continual-pretraining", "merge"]
    assert metadata(card)["base_model_relation"] == "merge"
    titles = [line for line in str(card).splitlines() if line.startswith("## ")]
    assert titles == ["## Before and after, by domain", "## Growth", "## Training stage", "## Merge"]


def test_pictures_are_shown(tmp_path: Path) -> None:
    (tmp_path / "landscape.png").write_bytes(b"")
    assert "![landscape.png](landscape.png)" in str(make_card(tmp_path))


def test_a_model_without_receipts(tmp_path: Path) -> None:
    data = metadata(make_card(tmp_path, repo_id="me/plain"))
    assert data == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["hf_warmscale"]}


def test_local_sources_are_no_base_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in (str(tmp_path / "runs" / "base"), "runs/base", "./runs/base", "~/runs/base"):
        write_json("growth_receipt.json", {**GROWTH, "source": source, "warnings": [f"{tmp_path}/x is large"]})
        card = make_card(tmp_path, repo_id="me/grown")
        assert "base_model" not in metadata(card)
        assert "runs" not in str(card) and str(tmp_path) not in str(card)
        assert "Grown from `./base`" in str(card)


def test_the_card_is_plain_text_that_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "merge_result.json", MERGE)
    card = make_card(tmp_path, repo_id="me/merged")
    card.save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").content == card.content


def test_long_lists_are_counted(tmp_path: Path) -> None:
    write_json(tmp_path / "growth_receipt.json", {**GROWTH, "layers": list(range(100))})
    assert "layers: 100 entries" in str(make_card(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_receipt(tmp_path: Path, content: str) -> None:
    (tmp_path / "growth_receipt.json").write_text(content)
    with pytest.raises(ValueError, match=r"growth_receipt\.json is damaged .*; make the model again"):
        make_card(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/run/checkpoint-100", "./checkpoint-100"),
        ("/home/me/run/", "./run"),
        ("C:\\Users\\me\\run", "./run"),
        ("../run", "./run"),
        ("~/run", "./run"),
        ("org/model", "org/model"),
        ("1/2 of the tokens", "1/2 of the tokens"),
        ("plain", "plain"),
        ("saved in /home/me/run, see https://host/a/b", "saved in run, see https://host/a/b"),
        ("copied ~/data/x.txt.", "copied x.txt."),
        (3, 3),
        (None, None),
        ({"loss//x/y": ["/x/y", {"b": "/z"}]}, {"loss/y": ["./y", {"b": "./z"}]}),
    ],
)
def test_portable(value: object, expected: object) -> None:
    assert portable(value) == expected


def test_a_file_without_paths_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":   1}')
    assert portable_json(tmp_path / "config.json") == b'{"a":   1}'
    (tmp_path / "config.json").write_text('{"growth": {"source": "/home/me/base"}}')
    assert portable_json(tmp_path / "config.json") == b'{\n  "growth": {\n    "source": "./base"\n  }\n}\n'


def test_a_tokenizer_keeps_its_slashes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    write_json(path, {"name_or_path": "/home/me/runs/base", "chat_template": "{% if x %}/home/me/y{% endif %}"})
    sent = json.loads(portable_json(path))
    assert sent == {"name_or_path": "./base", "chat_template": "{% if x %}/home/me/y{% endif %}"}


def test_lines_of_json_are_cleaned_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "study.jsonl").write_text('{"a": "/home/me/x/y"}\n{"b": 1}\n')
    assert portable_json(tmp_path / "study.jsonl") == b'{"a": "./y"}\n{"b": 1}\n'
