"""A checkpoint is known before it is read, is read to the bit, and is refused in one sentence when it is damaged."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_warmscale.checkpoints import TensorSpec, content_hash, open_checkpoint, refuse_non_finite
from tests.checkpoints.tiny import fingerprint, header, replace_header, stored_tensors, tiny_folder, tiny_model

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_to_the_bit(tmp_path: Path, dtype: torch.dtype, sharded: bool) -> None:
    expected = stored_tensors(tiny_model(dtype=dtype))
    checkpoint = open_checkpoint(tiny_folder(tmp_path / "model", sharded=sharded, dtype=dtype))
    assert checkpoint.specs == {name: TensorSpec.of(tensor) for name, tensor in expected.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint.tensors())
    assert len(checkpoint.files) == (1 if not sharded else len({*checkpoint.files}))
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in expected.values())


def test_config_and_tied_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_folder(tmp_path / "model"))
    assert checkpoint.config.model_type == "llama"
    assert checkpoint.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_tensor_is_a_private_view_of_the_file(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    before = fingerprint(folder)
    checkpoint = open_checkpoint(folder)
    first, second = (checkpoint.tensor("model.norm.weight") for _ in range(2))
    first.fill_(7)
    assert fingerprint(folder) == before
    assert not torch.equal(open_checkpoint(folder).tensor("model.norm.weight"), first)
    del checkpoint
    assert second.isfinite().all()  # a view outlives the checkpoint


class TestContentHash:
    def test_the_sharding_does_not_count(self, tmp_path: Path) -> None:
        single = open_checkpoint(tiny_folder(tmp_path / "single"))
        sharded = open_checkpoint(tiny_folder(tmp_path / "sharded", sharded=True))
        assert single.content_hash() == sharded.content_hash() == content_hash(stored_tensors(tiny_model()))

    def test_digests_asked_for_before_are_used(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(tiny_folder(tmp_path / "model"))
        whole = checkpoint.content_hash()
        again = open_checkpoint(tmp_path / "model")
        for name in again.specs:
            again.digest(name)
        (tmp_path / "model" / SINGLE).unlink()  # the mapping stays
        assert again.content_hash() == whole

    @pytest.mark.parametrize(
        "change",
        [
            lambda tensors: {**tensors, "a": tensors["a"].flip(0)},
            lambda tensors: {"b": tensors["a"]},
            lambda tensors: {"a": tensors["a"].reshape(2, 2)},
            lambda tensors: {"a": tensors["a"].view(torch.int32)},
            lambda tensors: {**tensors, "b": torch.zeros(0)},
        ],
        ids=["data", "name", "shape", "dtype", "one more"],
    )
    def test_everything_else_counts(self, change: Callable[..., dict[str, torch.Tensor]]) -> None:
        tensors = {"a": torch.arange(4.0)}
        assert content_hash(change(tensors)) != content_hash(tensors)


def _truncate(folder: Path) -> None:
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 1)


def _empty(folder: Path) -> None:
    os.truncate(folder / SINGLE, 0)


def _lfs_pointer(folder: Path) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def _two_sets(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(load_file(folder / SINGLE), "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def _garbage_header(folder: Path) -> None:
    with (folder / SINGLE).open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 40)


def _huge_header(folder: Path) -> None:
    with (folder / SINGLE).open("r+b") as file:
        file.write((1 << 62).to_bytes(8, "little"))


def _overlap(folder: Path) -> None:
    content = header(folder / SINGLE)
    content["model.norm.weight"]["data_offsets"] = content["model.layers.0.input_layernorm.weight"]["data_offsets"]
    replace_header(folder / SINGLE, content)


def _wrong_shape(folder: Path) -> None:
    content = header(folder / SINGLE)
    content["model.norm.weight"]["shape"] = [17]
    replace_header(folder / SINGLE, content)


def _unknown_dtype(folder: Path) -> None:
    content = header(folder / SINGLE)
    content["model.norm.weight"]["dtype"] = "F33"
    replace_header(folder / SINGLE, content)


def _no_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


SINGLE_DAMAGES: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "truncated": (_truncate, ValueError, "model.safetensors is truncated or corrupt"),
    "empty": (_empty, ValueError, "model.safetensors is an empty file"),
    "LFS pointer": (
        _lfs_pointer,
        ValueError,
        "model.safetensors is a Git LFS pointer, not the weights; run git lfs pull",
    ),
    "two sets": (_two_sets, ValueError, "holds two sets of weights, model.safetensors and the files of"),
    "garbage": (_garbage_header, ValueError, "model.safetensors is truncated or corrupt"),
    "header length": (_huge_header, ValueError, "model.safetensors is truncated or corrupt"),
    "overlap": (_overlap, ValueError, "model.safetensors is truncated or corrupt"),
    "shape": (_wrong_shape, ValueError, "model.safetensors is truncated or corrupt"),
    "dtype": (_unknown_dtype, ValueError, "model.safetensors is truncated or corrupt"),
    "nothing": (_no_weights, FileNotFoundError, "holds no weights"),
    "pickled": (_pickled, ValueError, r"only pickled weights \(pytorch_model.bin\)"),
}


def _missing_shard(folder: Path) -> None:
    next(folder.glob("model-00002-*")).unlink()


def _truncated_shard(folder: Path) -> None:
    shard = next(folder.glob("model-00002-*"))
    os.truncate(shard, shard.stat().st_size - 3)


def _edit_index(folder: Path, name: str, file: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(index))


def _promised(folder: Path) -> None:
    _edit_index(folder, "model.extra.weight", next(folder.glob("model-00001-*")).name)


def _outside(folder: Path) -> None:
    _edit_index(folder, "model.extra.weight", "../elsewhere.safetensors")


def _names_its_folder(folder: Path) -> None:
    _edit_index(folder, "model.extra.weight", "")


def _nested(folder: Path) -> None:
    (folder / INDEX).write_text("[" * 100_000)


def _twice(folder: Path) -> None:
    first, second = (next(folder.glob(f"model-0000{number}-*")) for number in (1, 2))
    save_file({**load_file(second), **load_file(first)}, second)


def _broken_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": ')


def _index_without_map(folder: Path) -> None:
    (folder / INDEX).write_text('{"weights": {}}')


SHARDED_DAMAGES: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "missing shard": (_missing_shard, FileNotFoundError, "lacks the shard model-00002-of"),
    "truncated shard": (_truncated_shard, ValueError, "model-00002-of-.* is truncated or corrupt"),
    "promised": (_promised, ValueError, "places the tensor model.extra.weight in model-00001-of"),
    "outside": (_outside, ValueError, "not a file of its folder"),
    "folder": (_names_its_folder, ValueError, "names '', which is not a file of its folder"),
    "nested": (_nested, ValueError, "is not the index"),
    "twice": (_twice, ValueError, "is in model-00001-of.* and in model-00002-of"),
    "broken index": (_broken_index, ValueError, "is not the index"),
    "index without map": (_index_without_map, ValueError, "is not the index"),
}


@pytest.mark.parametrize("damage", [*SINGLE_DAMAGES, *SHARDED_DAMAGES])
def test_damage_is_one_sentence(tmp_path: Path, damage: str) -> None:
    damages = SINGLE_DAMAGES if damage in SINGLE_DAMAGES else SHARDED_DAMAGES
    make, kind, message = damages[damage]
    folder = tiny_folder(tmp_path / "model", sharded=damages is SHARDED_DAMAGES)
    make(folder)
    before = fingerprint(folder)
    with pytest.raises(kind, match=message) as refusal:
        open_checkpoint(folder)
    assert fingerprint(folder) == before
    text = str(refusal.value)
    assert "\n" not in text and text.endswith(".") and str(tmp_path) in text


class TestSource:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            open_checkpoint(tmp_path / "nothing")

    def test_a_file(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        with pytest.raises(ValueError, match="is a file; name the folder"):
            open_checkpoint(folder / SINGLE)

    def test_a_folder_has_no_revision(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        with pytest.raises(ValueError, match="is a folder and has no revision main"):
            open_checkpoint(folder, revision="main")

    @pytest.mark.parametrize("name", ["nobody/nothing", "nothing-of-the-kind"])
    def test_a_hub_id_without_a_network(self, name: str) -> None:
        with pytest.raises(
            FileNotFoundError, match=f"no folder {name}, and the Hub cache has no such model"
        ) as refusal:
            open_checkpoint(name)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("name", ["no such model!", "nobody/no thing", "--"])
    def test_an_impossible_name(self, name: str) -> None:
        with pytest.raises(FileNotFoundError, match="neither a folder nor a possible Hub id"):
            open_checkpoint(name)

    def test_no_config(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        (folder / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
            _ = open_checkpoint(folder).config

    @pytest.mark.parametrize("content", ['{"model_type": "no_such_family"}', "{", "{}", "[" * 100_000])
    def test_an_unknown_config(self, tmp_path: Path, content: str) -> None:
        folder = tiny_folder(tmp_path / "model")
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json") as refusal:
            _ = open_checkpoint(folder).config
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"hidden_size": "16"}, "expected int, got str"),
            ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
            ({"num_attention_heads": 0}, "modulo by zero"),
            ({"dtype": "float33"}, "float33"),
        ],
    )
    def test_a_config_that_cannot_be_used(self, tmp_path: Path, changes: dict[str, object], reason: str) -> None:
        folder = tiny_folder(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=rf"config\.json .* cannot be used: .*{reason}") as refusal:
            _ = open_checkpoint(folder).config
        assert "\n" not in str(refusal.value)

    def test_code_in_a_folder_never_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even if a "y" waits on the terminal, where transformers would ask."""
        folder = tiny_folder(tmp_path / "model")
        names = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
        (folder / "config.json").write_text(json.dumps({"model_type": "harmful", "auto_map": names}))
        (folder / "configuration.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'harm')!r})\n")
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        with pytest.raises(ValueError, match=r"config\.json .* cannot be used: .* contains custom code"):
            _ = open_checkpoint(folder).config
        assert not (tmp_path / "harm").exists()


class TestPickles:
    def test_allowed_by_flag(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        expected = open_checkpoint(folder).content_hash()
        _pickled(folder)
        checkpoint = open_checkpoint(folder, allow_pickle=True)
        assert checkpoint.content_hash() == expected

    def test_code_in_a_pickle_never_runs(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        _no_weights(folder)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": _Harmful(tmp_path / "harm")}, protocol=2))
        with pytest.raises(ValueError, match="holds more than tensors"):
            open_checkpoint(folder, allow_pickle=True)
        assert not (tmp_path / "harm").exists()

    def test_a_pickle_of_something_else(self, tmp_path: Path) -> None:
        folder = tiny_folder(tmp_path / "model")
        _no_weights(folder)
        torch.save([torch.ones(2)], folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="does not hold a dictionary of tensors"):
            open_checkpoint(folder, allow_pickle=True)


class _Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e5m2])
def test_a_value_that_is_not_finite_names_its_tensor(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensors = {"good": torch.ones(3, 5), "bad": torch.ones(3, 5)}
    tensors["bad"][1, 3] = value
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"The tensor bad of .* holds NaN or an infinity"):
        open_checkpoint(tmp_path).check_finite()


def test_finite_values_pass() -> None:
    for tensor in (torch.tensor([torch.finfo(torch.float16).max]).half(), torch.zeros(0), torch.tensor([1 << 40])):
        refuse_non_finite("weight", tensor)


class TestCheckSpecs:
    def test_what_is_expected(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(tiny_folder(tmp_path / "model"))
        checkpoint.check_specs(checkpoint.specs)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (TensorSpec((16,), torch.bfloat16), r"float32\[16\]; expected was bfloat16\[16\]"),
            (TensorSpec((17,), torch.float32), r"float32\[16\]; expected was float32\[17\]"),
        ],
    )
    def test_another_shape_or_dtype(self, tmp_path: Path, spec: TensorSpec, message: str) -> None:
        checkpoint = open_checkpoint(tiny_folder(tmp_path / "model"))
        with pytest.raises(ValueError, match=f"model.norm.weight .* {message}"):
            checkpoint.check_specs({**checkpoint.specs, "model.norm.weight": spec})

    def test_missing_and_unexpected(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(tiny_folder(tmp_path / "model"))
        fewer = {name: spec for name, spec in checkpoint.specs.items() if name != "model.norm.weight"}
        with pytest.raises(ValueError, match=r"holds the tensor model\.norm\.weight, which is not expected"):
            checkpoint.check_specs(fewer)
        with pytest.raises(ValueError, match="lacks the tensor extra"):
            checkpoint.check_specs({**checkpoint.specs, "extra": TensorSpec((1,), torch.float32)})

    def test_an_unknown_name(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has no tensor nothing"):
            open_checkpoint(tiny_folder(tmp_path / "model")).tensor("nothing")
