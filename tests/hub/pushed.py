"""One model of each kind, and what the Hub gets of it.

Prints the listing: python -m tests.hub.pushed
"""

import json
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_warmscale.cli import main
from hf_warmscale.report import markdown_table
from tests.cli.workspace import make_workspace
from tests.hub.client import HubClient, hub_client
from tests.hub.server import HubServer, hub_server

COMMANDS = {
    "grown": "grow {here}/model {here}/grown --hidden-size 64",
    "shrunk": "shrink {here}/grown {here}/shrunk",
    "run/checkpoint-4": "train {here}/stage.yaml",
    "distilled/checkpoint-4": "train {here}/stage.yaml --output_dir {here}/distilled"
    ' --distillation {{"teacher":"{here}/model"}}',
    "cut": "shrink {here}/model {here}/cut --parameters 20K --trials 2"
    " --calibration {here}/train.jsonl --eval-data {here}/held-out.jsonl",
    "averaged": "average {here}/run --output {here}/averaged",
    "merged": "merge {here}/run/checkpoint-2 {here}/run/checkpoint-4 --output {here}/merged",
    "searched": "merge {here}/run/checkpoint-2 {here}/run/checkpoint-4 --output {here}/searched"
    " --eval-data {here}/held-out.jsonl --trials 2",
    "exported": "mup export {here}/model {here}/exported",
    "extended": "data extend {here}/train.jsonl {here}/extended --model {here}/model --new-tokens 8",
}
"""What makes a model of each kind, typed with absolute paths."""

ABSOLUTE = re.compile(r"(?<![\w:/.<~-])/[\w.-]+/[\w./-]+")
"""Two or more parts after a slash that begins a word: not `a/b`, not a link."""

BINARY = (".safetensors", ".png", ".pt", ".pth")
TOKENIZERS = ("tokenizer.json",)


def make_models(here: Path) -> None:
    """Make a model of each kind in an empty folder."""
    make_workspace(here)
    recipe = (here / "stage.yaml").read_text(encoding="utf-8")
    for name in ("model_name_or_path: model", "path: packed", "sayings: packed", "output_dir: run"):
        key, value = name.split(": ")
        recipe = recipe.replace(name, f"{key}: {here}/{value}")
    (here / "stage.yaml").write_text(recipe, encoding="utf-8")
    for command in COMMANDS.values():
        assert main(command.format(here=here).split()) == 0, command


def push(here: Path, kind: str, server: HubServer, client: HubClient) -> dict[str, bytes]:
    """Push one model; return the content of every file that arrived."""
    repo_id = f"me/{kind.replace('/', '-')}"
    url = client.call("push", here / kind, repo_id)
    assert url.startswith(server.url), url
    return server.files_at(repo_id)


def leaks(files: dict[str, bytes], here: Path) -> Iterator[str]:
    """Yield every absolute path, and every mention of the folder or of the machine, in the files."""
    private = (here.parent.name, str(Path.home()), socket.gethostname())
    for name, content in files.items():
        if name.endswith((*BINARY, *TOKENIZERS)):
            yield from [f"{name}: {here}"] if str(here).encode() in content else []
            continue
        text = content.decode()
        yield from (f"{name}: {found}" for found in ABSOLUTE.findall(text))
        yield from (f"{name}: {word}" for word in private if word in text)


def local_paths_in_configs(here: Path) -> list[str]:
    """Return the models whose config on this machine holds an absolute path."""
    configs = {kind: json.loads((here / kind / "config.json").read_text()) for kind in COMMANDS}
    return [kind for kind, config in configs.items() if ABSOLUTE.search(json.dumps(config))]


def main_listing() -> None:
    """Print what arrives of each kind, with the number of absolute paths in it."""
    with tempfile.TemporaryDirectory() as scratch, hub_server() as server:
        here = Path(scratch) / "work"
        make_models(here)
        with hub_client(server.url, Path(scratch) / "home") as client:
            for kind in COMMANDS:
                files = push(here, kind, server, client)
                found = list(leaks(files, here))
                print(f"\n## {kind}: {len(files)} files, {len(found)} absolute paths\n")
                print(markdown_table([{"file": name, "bytes": len(files[name])} for name in sorted(files)]))
                print("\n".join(found))


if __name__ == "__main__":
    main_listing()
