"""How every verb ends: a short table, the paths that were written, the next command to type."""

import shlex
from collections.abc import Mapping, Sequence


def show(
    rows: Sequence[Mapping[str, object]],
    *,
    title: str | None = None,
    written: Sequence[object] = (),
    then: Sequence[object] = (),
    remark: str = "",
) -> None:
    """Print the end of a verb on standard output.

    Args:
        rows (`Sequence[Mapping]`): of the table.
        title (`str`, *optional*): above it.
        written (`Sequence`): the files and folders that were made.
        then (`Sequence`): the words of the next command; they are quoted for the shell.
        remark (`str`): what to know about that command.
    """
    from hf_warmscale.report import print_table

    if title:
        print(f"\n{title}")  # above the table, not inside it: rich would break it at the table's width
    print_table(rows)
    for path in written:
        print(f"Written: {path}")
    if then:
        command = shlex.join(map(str, then))
        print(f"Next:    {command}" + (f"  ({remark})" if remark else ""))
