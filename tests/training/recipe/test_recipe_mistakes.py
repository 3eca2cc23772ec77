"""What a recipe can get wrong: one sentence, exit code 2, nothing written and nothing lost."""

import json
import re
from pathlib import Path

import pytest

from hf_warmscale.cli import main
from hf_warmscale.refusals import refuse_deepspeed_blocks
from tests.cli.shell import assert_sentence, files_below
from tests.cli.workspace import make_workspace

OTHER = "--output_dir other --max_steps 4 --stage second "
MISTAKES: dict[str, tuple[str, list[str]]] = {
    "weights that do not sum": (OTHER + "--mixture {sayings:{path:packed,weight:0.7}}", ["sum to 0.7"]),
    "a weight in words": (OTHER + "--mixture {sayings:{path:packed,weight:{0:half}}}", ["by sample, as in {0: 0.9"]),
    "no weight at the start": (OTHER + "--mixture {sayings:{path:packed,weight:{8:1}}}", ["begin at sample 8"]),
    "a source that runs dry": (
        "--output_dir other --max_steps 400 --mixture {sayings:{path:packed,weight:1,max_passes:1}}",
        ["'sayings' runs dry", "1600 rows"],
    ),
    "replay of what was never seen": (
        OTHER + "--mixture {proverbs:{path:packed,weight:1,seen_by:run/checkpoint-4}}",
        ["never saw the source 'proverbs'", "sayings"],
    ),
    "a schedule longer than the stage": (
        OTHER + "--schedule {name:constant,warmup:9}",
        ["9 steps", "the stage has 4"],
    ),
    "a schedule made for more steps": (
        OTHER + "--schedule {name:constant,total_steps:9}",
        ["9 steps long", "the stage only 4"],
    ),
    "an unknown schedule": (OTHER + "--schedule infinite_cosin", ["infinite_cosin", "infinite_cosine"]),
    "an unknown key of a schedule": (OTHER + "--schedule {name:wsd,cooldwn:0.1}", ["cooldwn", "cooldown"]),
    "an unknown key of a source": (OTHER + "--mixture {a:{path:packed,wieght:1}}", ["wieght", "weight"]),
    "a teacher that is not there": (OTHER + "--distillation {teacher:nowhere}", ["nowhere"]),
    "no teacher": (OTHER + "--distillation {alpha:0.5}", ["names no teacher; add teacher:"]),
    "an unknown key of a teacher": (OTHER + "--distillation {techer:model}", ["'techer'; did you mean 'teacher'"]),
    "a temperature of 0": (OTHER + "--distillation {teacher:model,temperature:0}", ["temperature is 0"]),
    "an alpha in words": (
        OTHER + "--distillation {teacher:model,alpha:half}",
        ["alpha is 'half'; it must be"],
    ),
    "an unknown source": (OTHER + "--distillation {teacher:model,sources:[saying]}", ["'saying'", "'sayings'"]),
    "a start that is never heard": (OTHER + "--distillation {teacher:model,self_kd:1}", ["heard on every source"]),
    "a cache that is not there": (OTHER + "--distillation {cache:nowhere}", ["no teacher cache nowhere"]),
    "the tokens of no cache": (OTHER + "--distillation {teacher:model,top_k:8}", ["top_k is of a cache"]),
    "a data set in place of a cache": (OTHER + "--distillation {cache:packed}", ["There is no teacher cache packed"]),
    "an unknown dtype": (OTHER + "--distillation {teacher:model,dtype:half}", ["distillation.dtype 'half'"]),
    "a checkpoint without a stage": (OTHER + "--parent model", ["model has no stage.json"]),
    "the tokenizer of other data": (OTHER + "--tokenizer_name_or_path longer", ["packed with another tokenizer"]),
    "a folder in use": ("--stage other", ["give that stage its own output_dir"]),
    "no step": (OTHER + "--gradient_accumulation_steps 0", ["gradient_accumulation_steps is 0", "at least 1"]),
    "an unknown LoRA field": (OTHER + "--lora {lora_alfa:8}", ["lora_alfa", "lora_alpha"]),
    "a LoRA rank in words": (OTHER + "--lora {r:eight}", ["lora cannot be used"]),
    "a missing optimizer package": (OTHER + "--optim galore_adamw", ["galore"]),
    "a missing reporting package": (OTHER + "--report_to clearml", ["ClearML", "installed"]),
    "a total batch in words": (
        OTHER + "--total_batch_size large",
        ["total_batch_size is 'large'", "as in {0: 16,"],
    ),
    "a total batch that begins inside a step": (
        OTHER + "--total_batch_size {0:4,10:8}",
        ["becomes 8 at sample 10", "in the middle of a step of 4 rows", "sample 8 or 12"],
    ),
    "a total batch that cannot be divided": (
        OTHER + "--total_batch_size {0:4,8:6}",
        ["total_batch_size is 6", "the 4 rows of one micro-batch", "or take 4"],
    ),
    "a total batch named twice": (
        OTHER + "--total_batch_size 8 --gradient_accumulation_steps 2",
        ["gradient_accumulation_steps is 2", "leave it out"],
    ),
    "another learning rate": ("--learning_rate 0.5", ["learning_rate is 0.01 there and 0.5 now", "on_mismatch"]),
    "another batch size": (
        "--per_device_train_batch_size 2",
        ["samples_per_step is 4 there and 2 now", "'override' changes the total batch from sample 16 on"],
    ),
    "a source that is gone": (
        "--mixture {proverbs:{path:packed,weight:1}} --on_mismatch override",
        ["has drawn from the source 'sayings'", "with the weight 0"],
    ),
    "an anneal where the rate falls": (
        "--output_dir other --anneal_from falling/checkpoint-4",
        ["is not constant", "rewarm_cosine"],
    ),
    "an anneal that is over": (
        "--output_dir other --anneal_from run/checkpoint-4 --anneal_until 10",
        ["has already seen 512 tokens", "end at 10"],
    ),
    "a shape without an anneal": ("--output_dir other --anneal_shape linear", ["anneal_from"]),
    "an unknown shape": (
        "--output_dir other --anneal_from run/checkpoint-4 --anneal_shape linaer",
        ["linaer", "linear"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished constant stage, a finished cosine, and an extended tokenizer."""
    folder = make_workspace(tmp_path_factory.mktemp("recipes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "stage.yaml"]) == 0
        falling = ["--schedule", "rewarm_cosine", "--stage", "falling", "--output_dir", "falling"]
        assert main(["train", "stage.yaml", *falling]) == 0
        extend = ["held-out.jsonl", "longer", "--model", "model", "--new-tokens", "8"]
        assert main(["data", "extend", *extend]) == 0
    return folder


def as_yaml(word: str) -> str:
    """Put the spaces of a flow mapping in, which a list of words cannot hold."""
    return re.sub(r"([:,])(?! )", r"\1 ", word) if word.startswith("{") else word


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refused(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options, words = MISTAKES[mistake]
    monkeypatch.chdir(folder)
    before = files_below(folder)
    capfd.readouterr()
    code = main(["train", "stage.yaml", *(as_yaml(word) for word in options.split())])
    assert_sentence(code, capfd.readouterr(), *words)
    assert files_below(folder) == before


@pytest.mark.parametrize("block", ["optimizer", "scheduler"])
def test_a_deepspeed_block_that_the_stage_decides_is_refused(block: str) -> None:
    with pytest.raises(ValueError, match=f"has a block '{block}', which silently replaces"):
        refuse_deepspeed_blocks(
            {block: {"type": "WarmupLR"}, "zero_optimization": {"stage": 2}}, "optimizer", "scheduler"
        )


def test_an_anneal_and_an_average_from_the_shell(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    anneal = ["--anneal_from", "run/checkpoint-2", "--anneal_until", "768", "--output_dir", "annealed"]
    batches = ["--total_batch_size", "{0: 4, 16: 8}", "--per_device_train_batch_size", "2"]
    assert main(["train", "stage.yaml", *anneal, *batches]) == 0
    record = json.loads((folder / "annealed" / "checkpoint-4" / "stage.json").read_text())
    assert (record["name"], record["optimizer"], record["mixture"]["first_sample"]) == ("sayings-anneal", "keep", 8)
    assert record["samples_per_step"] == 4, "the total batch at which the trunk stands"
    assert record["lineage"][0]["progress"]["tokens"] == {"sayings": 256}
    assert main(["average", "run", "--output", "averaged", "--average", "swa"]) == 0
    assert (folder / "averaged" / "model.safetensors").is_file()
    capfd.readouterr()
    assert_sentence(main(["average", "falling", "--output", "none"]), capfd.readouterr(), "has 0 checkpoints")
    assert_sentence(main(["average", "nowhere", "--output", "none"]), capfd.readouterr(), "nowhere")


def test_a_teacher_is_heard_live_or_from_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is written by the first run and read by the second, which does without the teacher."""
    monkeypatch.chdir(folder)
    seen = []
    for number, teacher in enumerate(
        ("teacher: run/checkpoint-4", "teacher: run/checkpoint-4, cache: cache, top_k: 300", "cache: cache")
    ):
        options = ["--output_dir", f"distilled-{number}", "--distillation", f"{{{teacher}, alpha: 0.5}}"]
        assert main(["train", "stage.yaml", *options]) == 0
        state = json.loads((folder / f"distilled-{number}" / "checkpoint-4" / "trainer_state.json").read_text())
        seen.append([entry["distillation/sayings"] for entry in state["log_history"] if "loss" in entry])
    assert seen[1] == pytest.approx(seen[0], abs=1e-4) and seen[2] == seen[1]
    assert min(seen[0]) > 0


def test_domains_are_reported_in_bits_per_byte(folder: Path) -> None:
    report = json.loads((folder / "run" / "report.json").read_text())
    manifest = json.loads((folder / "packed" / "pack.json").read_text())
    (domain,) = report["domains"]
    tokens = manifest["tokens"] + manifest["dropped_tokens"]
    assert domain["bits_per_byte"] == pytest.approx(
        domain["end"] * tokens / manifest["text_bytes"] / 0.6931471805599453
    )
