"""A cached teacher says what the live one says: written once, found by the tokens of a row, or refused."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_warmscale import DistillationTrainer, ReplayMixture, Stage, TeacherCache
from hf_warmscale.staging import locked
from hf_warmscale.training.distillation import cache_shards
from hf_warmscale.training.distillation.row_keys import row_key
from hf_warmscale.training.distillation.teacher import LiveTeacher
from tests.training.distillation.test_distillation_trainer import student, teacher
from tests.training.tiny import LENGTH, NEW, OLD, VOCAB, arguments, losses, rows

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_shards, "ROWS_PER_SHARD", 40)


def packed(count: int, *, lengths: tuple[int, ...] = (LENGTH,)) -> Rows:
    """Rows of two documents each; of several lengths, they are laid end to end."""
    made = []
    for number, row in enumerate(rows(count, seed=6)):
        tokens = torch.tensor(row["input_ids"])[: lengths[number % len(lengths)]]
        positions = torch.cat([torch.arange(5), torch.arange(len(tokens) - 5)])
        made.append({"input_ids": tokens, "position_ids": positions, "labels": tokens.where(positions > 0, -100)})
    return made


def first_loss(heard: Any, data: Rows, folder: Path, *, temperature: float = 1.0, **options: Any) -> float:
    """The loss of a step of four rows on which the teacher alone is heard."""
    mixture = ReplayMixture({"new": data, "old": OLD}, [0.5, 0.5])
    stage = Stage("cached", "constant", mixture, max_steps=1)
    options = {"sources": ["new"], "alpha": 0.5, "temperature": temperature, **options}
    trainer = DistillationTrainer(student(), arguments(folder), teacher=heard, stage=stage, **options)
    trainer.train()
    return losses(trainer)[0]


@pytest.mark.parametrize("data", ["plain", "packed", "end to end"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_with_all_tokens_it_is_the_live_teacher(data: str, direction: Any, tmp_path: Path) -> None:
    chosen = {"plain": NEW, "packed": packed(60), "end to end": packed(60, lengths=(16, 11, 9))}[data]
    cache = TeacherCache.write(tmp_path / "cache", teacher(), chosen, k=VOCAB, temperature=2.0, batch_size=3)
    found, live = (
        first_loss(each, chosen, tmp_path / name, temperature=2.0, direction=direction)
        for name, each in (("cached", cache), ("live", teacher()))
    )
    assert found == pytest.approx(live, abs=1e-4) and found > 0.1


def test_fewer_tokens_and_half_precision_lose_little(tmp_path: Path) -> None:
    """The merged tail can only lower the divergence; here half of the tokens hold most of the mass."""
    live = first_loss(teacher(), NEW, tmp_path / "live", alpha=1.0)
    for dtype in (torch.float32, torch.float16):
        name = str(dtype)
        cache = TeacherCache.write(tmp_path / name, teacher(), NEW, k=VOCAB // 2, draws=0, dtype=dtype)
        found = first_loss(cache, NEW, tmp_path / f"run {name}", alpha=1.0)
        assert found < live + 1e-3 and found == pytest.approx(live, rel=0.3)


def test_drawn_tokens_make_up_for_the_others(tmp_path: Path) -> None:
    """A mean over all positions: with four likeliest tokens alone it is far off, with four drawn within its error."""
    tokens = torch.tensor([row["input_ids"] for row in NEW])
    log_q = student().eval()(input_ids=tokens).logits.flatten(0, 1).log_softmax(-1).detach()
    live = LiveTeacher(teacher(), VOCAB, torch.device("cpu")).predict({"input_ids": tokens})
    expected, _ = live.divergence(0, log_q, 1.0, "forward")
    found, error = {}, 0.0
    for draws in (0, 4):
        cache = TeacherCache.write(tmp_path / str(draws), teacher(), NEW, k=4 + draws, draws=draws, batch_size=7)
        values, _ = cache.predict({"input_ids": tokens}).divergence(0, log_q, 1.0, "forward")
        difference = values - expected
        found[draws], error = float(difference.mean()), float(difference.std()) / len(difference) ** 0.5
    assert abs(found[4]) < 5 * error < -found[0]


def test_padding_and_the_order_of_rows_do_not_matter(tmp_path: Path) -> None:
    """Also without a stage, the rows of a batch are found by their tokens."""
    cache = TeacherCache.write(tmp_path, teacher(), NEW, k=VOCAB)
    tokens = torch.tensor([NEW[7]["input_ids"], NEW[3]["input_ids"]])
    found = cache.predict({"input_ids": tokens})
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens], dim=1)
    mask = (torch.arange(LENGTH + 3) >= 3).long().expand(2, -1)
    moved = cache.predict({"input_ids": padded, "attention_mask": mask})
    assert torch.equal(moved.log_probs.reshape(2, LENGTH + 3, -1)[:, 3:].flatten(0, 1), found.log_probs)
    expected = teacher().eval()(input_ids=tokens).logits.log_softmax(-1).flatten(0, 1).gather(1, found.ids)
    torch.testing.assert_close(found.log_probs, expected.detach(), rtol=0, atol=1e-5)


def test_a_killed_write_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TeacherCache.write(tmp_path / "whole", teacher(), NEW, k=4)
    half, written = tmp_path / "half", sorted((tmp_path / "whole").glob("*.safetensors"))
    assert len(written) == 3
    TeacherCache.write(half, teacher(), NEW, k=4)
    (half / written[1].name).unlink()
    (half / f".{written[1].name}.partial").write_bytes(b"half of a file")
    kept = (half / written[0].name).stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"is incomplete; call TeacherCache.write again"):
        TeacherCache(half)
    TeacherCache.write(half, teacher(), NEW, k=4)
    assert (half / written[0].name).stat().st_mtime_ns == kept
    for path in written:
        assert (half / path.name).read_bytes() == path.read_bytes()
    assert not [path for path in half.iterdir() if path.suffix not in (".safetensors", ".json")]
    assert whole.fingerprint().endswith(" top 3 and 1 drawn")


def test_of_several_writers_one_writes_and_an_error_reaches_all(tmp_path: Path) -> None:
    """A lock of the system tells two threads apart as it does two processes."""

    def write(folder: str, data: Rows) -> str | int:
        try:
            return len(TeacherCache.write(tmp_path / folder, model, data, k=4)._order)
        except ValueError as error:
            return str(error)

    model, asked = teacher(), []
    model.register_forward_pre_hook(lambda *_: asked.append(1))
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(write, ["cache"] * 3, [NEW] * 3)) == [len(NEW)] * 3
    assert len(asked) == sum(-(-rows_of_shard // 8) for rows_of_shard in (40, 40, 20))
    with locked(tmp_path / "cache", wait=0):
        assert write("cache", NEW) == len(NEW)  # nothing to write, nothing to wait for
    torch.nn.init.constant_(model.lm_head.weight, 1e38)  # finite, and its logits are not
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(write, ["broken"] * 3, [NEW] * 3))
    assert all("logits that are not finite" in str(each) for each in found)


def test_a_cache_of_something_else_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = TeacherCache.write(folder, teacher(), NEW, k=4)
    other: Any
    for wrong, other, said in (
        (teacher(hidden_size=32), {}, "teacher is .* there"),
        (teacher(), {"k": 8, "draws": 1}, "k is 4 there and 8 here"),
        (teacher(), {"draws": 2}, "draws is 1 there and 2 here"),
        (teacher(), {"temperature": 2.0}, "temperature is 1.0 there and 2.0 here"),
    ):
        with pytest.raises(ValueError, match=f"holds another teacher cache: {said}"):
            TeacherCache.write(folder, wrong, NEW, **{"k": 4, **other})
    with pytest.raises(ValueError, match=r"holds another teacher cache: data.rows is 100 there and 50 here"):
        TeacherCache.write(folder, teacher(), OLD, k=4)
    with pytest.raises(ValueError, match="is of another teacher; write a new one"):
        TeacherCache(folder, teacher=teacher(hidden_size=32))
    with pytest.raises(ValueError, match=r"written from other data: it lacks 2 of 2 rows of the source 'new'"):
        first_loss(cache, rows(30, seed=77), tmp_path / "run")
    with pytest.raises(ValueError, match=r"temperature is 2.0, and the teacher cache .* at 1.0; write another"):
        first_loss(cache, NEW, tmp_path / "run", temperature=2.0)
    with pytest.raises(FileNotFoundError, match="There is no teacher cache"):
        TeacherCache(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="k is 0"):
        TeacherCache.write(tmp_path / "none", teacher(), NEW, k=0)
    with pytest.raises(ValueError, match="draws is 4; it must be between 0 and k - 1, 3"):
        TeacherCache.write(tmp_path / "none", teacher(), NEW, k=4, draws=4)
    broken = teacher()
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="The teacher cannot be used"):
        TeacherCache.write(tmp_path / "nan", broken, NEW, k=4)
    assert not (tmp_path / "nan").exists()
    shutil.copytree(folder, tmp_path / "damaged")
    next((tmp_path / "damaged").glob("*.safetensors")).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"is damaged .*; delete it"):
        TeacherCache(tmp_path / "damaged")


def test_a_row_is_known_by_its_tokens_and_its_documents() -> None:
    row = {"input_ids": [3, 4, 5, 6]}
    padded = {"input_ids": [0, 3, 4, 5, 6], "attention_mask": [0, 1, 1, 1, 1]}
    one = {**row, "position_ids": torch.arange(4)}
    two = {**row, "position_ids": [0, 1, 0, 1]}
    placed = {**padded, "position_ids": [0, 0, 1, 2, 3]}  # padding takes no position
    assert row_key(row) == row_key(padded) == row_key(one) == row_key(placed) != row_key(two)
    assert row_key(row) != row_key({"input_ids": [3, 4, 5]})
