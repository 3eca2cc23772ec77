"""Processes that share the evaluation of one trial; one of them owns the study."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    """An error of the main process; `error` is `None` if it cannot be sent."""

    error: BaseException | None
    text: str


class Ranks:
    """The processes of one `accelerate launch`, or the only one.

    All run the same search. Only the main process uses the study or writes files; it broadcasts the results.
    """

    def __init__(self) -> None:
        # Without `cpu`, accelerate ignores the launcher on a machine without an accelerator: each process is alone.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self._state = PartialState(cpu=cpu)

    @property
    def distributed(self) -> bool:
        """Whether there are several processes."""
        return bool(self._state.num_processes > 1)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that owns the study."""
        return bool(self._state.is_main_process)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device(self._state.device)

    def on_main(self, function: Callable[[], T]) -> T | None:
        """Call `function` on the main process, which alone gets its result; an error is raised on all processes.

        Raises:
            BaseException: on all processes, if the main one raises it; see `from_main`.
        """
        results: list[T] = []
        self.from_main(lambda: results.append(function()))
        return results[0] if results else None

    def from_main(self, function: Callable[[], T]) -> T:
        """Call `function` on the main process and return its result, which is pickled, on all of them.

        Raises:
            BaseException: on all processes, if the main one raises it; an error that cannot be sent becomes a
                RuntimeError with its text on the others.
        """
        if not self.distributed:
            return function()
        told: list[T | _Failure | None] = [None]
        if self.is_main:
            try:
                told = [function()]
            # Whatever it is, Ctrl-C too: the other processes wait in the broadcast, and would wait for ever.
            except BaseException as error:
                broadcast_object_list([_failure(error)])
                raise
        broadcast_object_list(told)
        (result,) = told
        if isinstance(result, _Failure):
            raise result.error or RuntimeError(f"The main process failed: {result.text}")
        return cast("T", result)


def _failure(error: BaseException) -> _Failure:
    text = f"{type(error).__name__}: {error}"
    try:
        # Both ways: an exception with arguments of its own can be packed and then not be made again.
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the class raises
        return _Failure(None, text)
    return _Failure(error, text)
