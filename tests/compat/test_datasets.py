"""datasets marks a stream that was split by rank, and does not mark any other."""

from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from hf_warmscale.compat.datasets import is_split_by_node


def numbers() -> object:
    yield from ({"number": number} for number in range(8))


def test_a_split_stream_is_known_by_its_mark() -> None:
    stream = IterableDataset.from_generator(numbers)
    assert not is_split_by_node(stream.skip(2))
    assert is_split_by_node(split_dataset_by_node(stream, rank=0, world_size=2).skip(2))
