"""What is written, in any order and sharding, is what transformers and safetensors read."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from hf_warmscale.checkpoints import CheckpointWriter, TensorSpec, content_hash, open_checkpoint
from tests.checkpoints.tiny import header, load_completely, stored_tensors, tiny_config, tiny_model

INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


def write(folder: Path, tensors: Tensors, *, max_shard_size: int | str = "5GB", order: int = 0) -> None:
    """Write tensors in a shuffled order."""
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    names = sorted(tensors)
    random.Random(order).shuffle(names)
    with CheckpointWriter(folder, specs, max_shard_size=max_shard_size) as writer:
        for name in names:
            writer.write(name, tensors[name])


@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB", 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_transformers_reads_it_to_the_bit(tmp_path: Path, dtype: torch.dtype, max_shard_size: int | str) -> None:
    model = tiny_model(dtype=dtype)
    write(tmp_path, stored_tensors(model), max_shard_size=max_shard_size)
    config = tiny_config()
    config.dtype = dtype
    config.save_pretrained(tmp_path)
    loaded = load_completely(tmp_path)
    assert loaded.dtype == dtype
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert (tmp_path / INDEX).exists() == (max_shard_size != "5GB")


def test_files_and_index_are_those_of_transformers(tmp_path: Path) -> None:
    model = tiny_model()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    ours.mkdir()
    model.save_pretrained(theirs, max_shard_size="4KB")
    write(ours, stored_tensors(model), max_shard_size="4KB")
    index = json.loads((ours / INDEX).read_text())
    assert index == json.loads((theirs / INDEX).read_text())
    assert {path.name for path in ours.iterdir()} == {*index["weight_map"].values(), INDEX}
    for path in ours.glob("*.safetensors"):
        assert path.stat().st_size <= 4000 + 8 + len(json.dumps(header(path)))
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_the_order_of_writing_does_not_count(tmp_path: Path) -> None:
    files = []
    for order in range(3):
        (tmp_path / str(order)).mkdir()
        write(tmp_path / str(order), stored_tensors(tiny_model()), order=order)
        files.append((tmp_path / str(order) / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    """Scalars, empty tensors, views that are not contiguous, odd byte counts: no tensor moves its neighbours."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors: Tensors = {
        "a scalar": torch.tensor(3.5, dtype=torch.float64),
        "an empty one": torch.zeros(0, 3),
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "with gradient": torch.ones(3, requires_grad=True),
        "unicode é": torch.ones(1),
    }
    odd = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16]
    odd += [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
    tensors |= {str(dtype): torch.tensor([0.0, 1.0, 1.0]).to(dtype) for dtype in odd}
    write(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.content_hash() == content_hash(tensors)
    for name, tensor in checkpoint.tensors():
        assert TensorSpec.of(tensor) == TensorSpec.of(tensors[name])
    widths = [checkpoint.specs[name].dtype.itemsize for name in checkpoint.specs]
    assert widths == sorted(widths, reverse=True)  # so that every tensor is aligned


def test_tensors_are_aligned_after_any_header(tmp_path: Path) -> None:
    for length in range(1, 9):
        folder = tmp_path / str(length)
        folder.mkdir()
        write(folder, {"n" * length: torch.ones(2, dtype=torch.float64)})
        raw = (folder / "model.safetensors").read_bytes()
        assert int.from_bytes(raw[:8], "little") % 8 == 0


SPECS = {"a": TensorSpec((2,), torch.float32), "b": TensorSpec((1,), torch.float32)}


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("c", torch.zeros(2), "The tensor c was not announced"),
            ("a", torch.zeros(3), r"The tensor a is float32\[3\], not float32\[2\] as announced"),
            ("a", torch.zeros(2).double(), r"The tensor a is float64\[2\], not float32\[2\] as announced"),
        ],
    )
    def test_not_as_announced(self, tmp_path: Path, name: str, tensor: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message), CheckpointWriter(tmp_path, SPECS) as writer:
            writer.write(name, tensor)

    def test_twice(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ValueError, match="The tensor a was written before"),
            CheckpointWriter(tmp_path, SPECS) as writer,
        ):
            writer.write("a", torch.zeros(2))
            writer.write("a", torch.zeros(2))

    def test_missing(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ValueError, match="1 tensors were not written, b among them"),
            CheckpointWriter(tmp_path, SPECS) as writer,
        ):
            writer.write("a", torch.zeros(2))
        with pytest.raises(SafetensorError):
            safe_open(tmp_path / "model.safetensors", framework="pt")

    def test_a_dtype_that_cannot_be_stored(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has the dtype torch\.complex128"):
            CheckpointWriter(tmp_path, {"a": TensorSpec((1,), torch.complex128)})

    def test_more_than_the_disk_has(self, tmp_path: Path) -> None:
        """Said before any byte is written."""
        with pytest.raises(OSError, match=r"The weights need 4e\+06 GB and the disk of .* left") as refusal:
            CheckpointWriter(tmp_path, {"a": TensorSpec((10**15,), torch.float32)})
        assert "\n" not in str(refusal.value)
        assert list(tmp_path.iterdir()) == []


def test_unreadable_until_complete(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, SPECS)
    writer.write("a", torch.ones(2))
    writer.write("b", torch.ones(1))
    with pytest.raises(ValueError, match="truncated or corrupt"):
        open_checkpoint(tmp_path)
    writer.complete()
    writer.close()
    assert open_checkpoint(tmp_path).tensor("a").tolist() == [1, 1]


def test_memory_holds_one_tensor(tmp_path: Path) -> None:
    """Copy 96 MB in tensors of 8 MB: anonymous memory grows by less than one tensor, though a shard holds four."""
    specs = {f"layer.{number}": TensorSpec((2048, 1024), torch.float32) for number in range(12)}
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with CheckpointWriter(source, specs) as writer:
        for number, (name, spec) in enumerate(specs.items()):
            writer.write(name, torch.full(spec.shape, float(number)))
    checkpoint = open_checkpoint(source)
    before, peak = anonymous_bytes(), 0
    with CheckpointWriter(target, checkpoint.specs, max_shard_size="32MB") as writer:
        for name, tensor in checkpoint.tensors():
            writer.write(name, tensor)
            peak = max(peak, anonymous_bytes())
    assert peak - before < 8 * 1024 * 1024
    assert open_checkpoint(target).content_hash() == checkpoint.content_hash()


def anonymous_bytes() -> int:
    """Return the resident memory that no file backs (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
