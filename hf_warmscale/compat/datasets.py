"""What this package needs of datasets beyond its public API; a test of each function says what broke."""

from datasets import IterableDataset


def is_split_by_node(stream: IterableDataset) -> bool:
    """Tell whether `split_dataset_by_node` has restricted a stream to the rows of one rank."""
    return stream._distributed is not None
