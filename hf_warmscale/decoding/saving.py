"""Save and load by member: names, folders and revisions instead of weights, as PEFT does with a base model."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.checkpoints.files import ADAPTER_CONFIG, ADAPTER_FILE
from hf_warmscale.checkpoints.loading import load_config, require_weights
from hf_warmscale.checkpoints.portable import is_local_path
from hf_warmscale.checkpoints.source import Source, fetch_subfolders, find_source
from hf_warmscale.compat.peft import read_adapter_config
from hf_warmscale.decoding.configuration import EmulatedFineTuningConfig
from hf_warmscale.decoding.members import Member, Model, refuse_no_decoder
from hf_warmscale.decoding.receipt import card, combination_receipt, entries_of

Entry = dict[str, str]
"""Where a member is: `name_or_path`, and perhaps `revision` and `adapter`, a subfolder."""

NOT_FOR_MEMBERS = ("trust_remote_code", "adapter_kwargs", "_from_auto")
"""What `AutoModelForCausalLM` adds to the options; remote code is never run."""


def load_member(name: str | os.PathLike[str], **options: Any) -> tuple[Model, Entry]:
    """Load a causal language model, or an adapter on its base model; return where it was found as well.

    Args:
        name (`str` or `PathLike`): a folder, a Hub id, or `id@revision`; a folder may hold an adapter.
        options: for `AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, ...

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not a causal language model, its weights are damaged, not finite or not those of its
            config, or an adapter does not say what model it is for.
    """
    source = find_source(name)
    if (source.folder / ADAPTER_CONFIG).is_file():
        return _load_adapter(source, options), _entry(source)
    refuse_no_decoder(str(name), load_config(source.folder))
    # `from_pretrained` alone would fill what is missing with random numbers, and pass on NaN.
    source = require_weights(name).source
    model = AutoModelForCausalLM.from_pretrained(source.folder, trust_remote_code=False, **options)
    return model, _entry(source)


def describe_members(members: Iterable[Member]) -> dict[str, Any]:
    """Return the entries of live models by role, after the names that their configs hold."""
    base, *tuned, reference = [_live_entry(member) for member in members]
    return {"base": base, "tuned": tuned, "reference": reference}


def write_by_member(
    folder: Path, members: Sequence[Member], config: EmulatedFineTuningConfig, generation_config: GenerationConfig
) -> None:
    """Write config, generation config, card and adapters into an existing folder; the entries go into the config.

    Raises:
        ValueError: if a member cannot be loaded from anywhere.
    """
    config.members = _named_entries(members, config.members)
    for member, entry in zip(members, entries_of(config.members), strict=True):
        if entry is not None and "adapter" in entry and isinstance(member.model, PeftModel):
            member.model.save_pretrained(str(folder / entry["adapter"]))
    config.save_pretrained(folder)
    generation_config.save_pretrained(folder)
    receipt = combination_receipt(config)
    write_json(folder / receipt.file_name, receipt.to_dict())
    write_text(folder / "README.md", card(receipt))


def files_to_publish(folder: Path) -> list[Path]:
    """Return the files of the adapters that `write_by_member` saved.

    Raises:
        ValueError: if a member lies in a folder of this machine, from which nobody else could load it.
    """
    members = EmulatedFineTuningConfig.from_pretrained(folder).members
    files: list[Path] = []
    for entry in filter(None, entries_of(members) if members is not None else []):
        name = entry["name_or_path"]
        if is_local_path(name):
            raise ValueError(
                f"The combination names the member {name}, a folder of this machine; push that model first, and load "
                "the combination with its Hub id."
            )
        if "adapter" in entry:
            files += [folder / entry["adapter"] / file for file in (ADAPTER_CONFIG, ADAPTER_FILE)]
    return files


@dataclass(frozen=True)
class LoadedMembers:
    """What `write_by_member` wrote, loaded.

    Args:
        config (`EmulatedFineTuningConfig`): the settings and the entries.
        models (`list[Model | None]`): the base, the tuned models and the reference; one that occurs twice is one
            object, and a reference that is the first tuned model with its adapter off is `None`.
        generation_config (`GenerationConfig`, *optional*): if there is one.
    """

    config: EmulatedFineTuningConfig
    models: list[Model | None]
    generation_config: GenerationConfig | None


def load_members(
    source: str | os.PathLike[str],
    *,
    config: EmulatedFineTuningConfig | None = None,
    revision: str | None = None,
    **options: Any,
) -> LoadedMembers:
    """Load the models that a folder or a Hub id names; options as in `load_member`.

    Raises:
        FileNotFoundError: naming the member that is not where it was.
        ValueError: if the config names no members.
    """
    found = find_source(source, revision=revision)
    options = {name: value for name, value in options.items() if name not in NOT_FOR_MEMBERS}
    config = config or EmulatedFineTuningConfig.from_pretrained(found.folder)
    if config.members is None:
        raise ValueError(f"{source} names no members in its config.json; save the model with save_pretrained.")
    config.name_or_path = os.fspath(source)
    entries = entries_of(config.members)
    fetch_subfolders(found, [entry["adapter"] for entry in entries if entry is not None and "adapter" in entry])
    loaded: list[tuple[Entry, Model]] = []
    models = [_load_once(entry, found.folder, loaded, options) for entry in entries]
    stored = (found.folder / GENERATION_CONFIG_NAME).is_file()
    return LoadedMembers(config, models, GenerationConfig.from_pretrained(found.folder) if stored else None)


def _named_entries(members: Sequence[Member], named: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entries to save: adapters get a folder of their own, every other model must have a name."""
    entries = []
    for member, entry in zip(members, entries_of(named or describe_members(members)), strict=True):
        if isinstance(member.model, PeftModel):
            folder = member.role.replace("[", "-").rstrip("]")
            entry = None if not member.adapter else {**_live_entry(member), "adapter": folder}
        if entry is not None and not entry["name_or_path"]:
            raise ValueError(
                f"The {member.role} model was built in memory, so it could not be loaded again; save it, and load it "
                "from there."
            )
        entries.append(entry)
    return {"base": entries[0], "tuned": entries[1:-1], "reference": entries[-1]}


def _load_once(
    entry: Entry | None, folder: Path, loaded: list[tuple[Entry, Model]], options: Mapping[str, Any]
) -> Model | None:
    if entry is None:
        return None
    # One model may have several roles, such as tuned and reference; it must not be in memory twice.
    for known, model in loaded:
        if known == entry:
            return model
    model, _ = load_member(_at(entry), **options)
    if "adapter" in entry:
        model = PeftModel.from_pretrained(model, folder / entry["adapter"])
    loaded.append((entry, model))
    return model


def _load_adapter(source: Source, options: Mapping[str, Any]) -> Model:
    config = read_adapter_config(source.folder)
    base, revision = config.base_model_name_or_path, config.revision
    if not base:
        raise ValueError(f"{source.name} is an adapter that does not name its base model; pass the models yourself.")
    model, entry = load_member(_at(_named_entry(base, revision)), **options)
    adapted = PeftModel.from_pretrained(model, source.folder)
    # The commit that was loaded, since a branch moves on.
    adapted.active_peft_config.revision = entry.get("revision")
    return adapted


def _entry(source: Source) -> Entry:
    return _named_entry(source.repo_id or str(source.folder.resolve()), source.revision)


def _live_entry(member: Member) -> Entry:
    """Return where a live model came from; the base of an adapter as peft names it, with its revision."""
    if not isinstance(member.model, PeftModel):
        return {"name_or_path": _absolute(member.plain.config.name_or_path)}
    adapter = member.model.active_peft_config
    name = _absolute(adapter.base_model_name_or_path or member.plain.config.name_or_path)
    return _named_entry(name, adapter.revision)


def _named_entry(name: str, revision: str | None) -> Entry:
    # A folder has no revision, whatever the config of an adapter says.
    return {"name_or_path": name, **({} if revision is None or Path(name).is_dir() else {"revision": revision})}


def _at(entry: Entry) -> str:
    return f"{entry['name_or_path']}@{entry['revision']}" if "revision" in entry else entry["name_or_path"]


def _absolute(name: str | None) -> str:
    if not name:
        return ""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
