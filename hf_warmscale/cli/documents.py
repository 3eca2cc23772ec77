"""The documents that a verb is given to measure on."""


def read_documents(path: str, *, at_most: int | None = None) -> list[str]:
    """Return the documents of a file or folder that are not blank, read without progress bars.

    Args:
        path (`str`): see `load_documents`.
        at_most (`int`, *optional*): how many documents of the beginning are read; by default all.

    Raises:
        FileNotFoundError, ValueError: as `load_documents`, and if one is not text or all are blank.
    """
    from hf_warmscale.cli.quiet import no_bars_of_datasets
    from hf_warmscale.training.data.document_faults import clean
    from hf_warmscale.training.data.documents import load_documents

    with no_bars_of_datasets():
        found = load_documents(path)[:at_most]["text"]
    texts = [text for text in clean(found, range(len(found)), path, end=None) if text.strip()]
    if not texts:
        raise ValueError(f"{path} holds no documents that are not empty.")
    return texts
