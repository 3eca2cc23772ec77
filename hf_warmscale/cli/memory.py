"""Tell that the memory was too small, by whatever each library raises then."""

SAID = ("out of memory", "can't allocate memory", "not enough memory", "no executable batch size found")
"""By CUDA and other devices, by torch on a CPU, and by accelerate when no batch size is left to try."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the memory of the machine or of the device was too small.

    Example:

    ```python
    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    True

    ```
    """
    return isinstance(error, MemoryError) or (
        # torch.OutOfMemoryError is one too; torch is not imported to look at an error.
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SAID)
    )
