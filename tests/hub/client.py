"""A process that meets the test server as the Hub: `HF_ENDPOINT` is read when huggingface_hub is imported.

Started as `python -m tests.hub.client`; each line it reads is a call, each line it answers the result.
"""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from tests.hub.server import TOKEN


class HubClient:
    """The other end: calls functions of this module in that process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def call(self, function: str, *arguments: object, token: str | None = TOKEN, **options: object) -> str:
        """Return the result as text; a refusal as the name of its class and its message."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"function": function, "arguments": [*map(str, arguments)], "options": options, "token": token}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the client process died"
        return str(json.loads(answer))


@contextmanager
def hub_client(url: str, home: Path) -> Iterator[HubClient]:
    """Run a client of the server at `url` with a Hub cache of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.hub.client"]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield HubClient(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def push(folder: str, repo_id: str, **options: object) -> str:
    """Push a folder; return the commit's URL."""
    from hf_warmscale.hub import push_to_hub

    return push_to_hub(folder, repo_id, **options)  # type: ignore[arg-type]


def push_grown(folder: str, repo_id: str) -> str:
    """Grow the model of a folder in memory and push it; return the commit's URL."""
    from transformers import AutoTokenizer

    from hf_warmscale import grow_from_pretrained
    from hf_warmscale.hub import push_to_hub

    grown = grow_from_pretrained(folder, num_hidden_layers=4, depth="identity", verify=False)
    return push_to_hub(grown, repo_id, tokenizer=AutoTokenizer.from_pretrained(folder))


def combine(base: str, tuned: str, repo_id: str) -> str:
    """Combine models of the Hub, push the combination and load it; return whether it says the same."""
    import torch

    from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
    from hf_warmscale.hub import push_to_hub

    model = EmulatedFineTuningForCausalLM.from_members(base, tuned)
    push_to_hub(model, repo_id)
    loaded, ids = EmulatedFineTuningForCausalLM.from_pretrained(repo_id), torch.arange(9)[None]
    return str(torch.equal(model(ids).logits, loaded(ids).logits))


def train(folder: str, output: str, repo_id: str) -> str:
    """Train a stage that pushes itself as it goes, with everything named by absolute paths; return the URL."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator

    from hf_warmscale import ContinualTrainer, ContinualTrainingArguments, ReplayMixture, Stage

    rows = [{"input_ids": [n % 7, 1, 2, 3], "labels": [n % 7, 1, 2, 3]} for n in range(8)]
    mixture = ReplayMixture({f"{folder}/rows": rows, "other": rows}, {f"{folder}/rows": 0.5, "other": 0.5}, seed=0)
    arguments = ContinualTrainingArguments(
        output_dir=output, per_device_train_batch_size=4, save_steps=1, eval_strategy="steps", eval_steps=1,
        logging_steps=1, save_total_limit=1, load_best_model_at_end=True, report_to="none", use_cpu=True,
        push_to_hub=True, hub_model_id=repo_id, hub_strategy="checkpoint", hub_always_push=True,
        hub_token=os.environ["HF_TOKEN"],
    )  # fmt: skip
    trainer = ContinualTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        arguments,
        default_data_collator,
        stage=Stage("pushed", "constant", mixture, max_steps=2),
        eval_dataset={"other": rows},
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    return str(trainer.push_to_hub())


def load(repo_id: str, output: str) -> str:
    """Load model and tokenizer as a user would, save them, and return some token ids."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(repo_id).save_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(repo_id)
    tokenizer.save_pretrained(output)
    return str(tokenizer("Growth keeps").input_ids)


def probe(repo_id: str) -> str:
    """Grow a model of the Hub in memory; return on how many tokens it was measured, and what its source is called."""
    from hf_warmscale import grow_from_pretrained

    grown = grow_from_pretrained(repo_id, num_hidden_layers=4, depth="identity")
    receipt = grown.growth_receipt
    return f"{receipt['verification']['tokens']} {receipt['source']}"  # type: ignore[index]


def describe(repo_id: str, revision: str | None = None) -> str:
    """Open a checkpoint; return its hash, name and commit."""
    from hf_warmscale.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(repo_id, revision=revision)
    return f"{checkpoint.content_hash()} {checkpoint.source.identity} {checkpoint.source.revision}"


def warmscale(*arguments: str) -> str:
    """Run the command line; return its exit code."""
    from hf_warmscale.cli import main

    return str(main(arguments))


def typed(command: str, folder: str, patience: float = 10) -> str:
    """Run a command line in a folder; return its exit code, or the error that it did not explain, and its output."""
    from huggingface_hub import constants

    from hf_warmscale.cli import main

    vars(constants)["HF_HUB_DOWNLOAD_TIMEOUT"] = patience  # which the environment sets in whole seconds
    printed = io.StringIO()
    try:
        with contextlib.chdir(folder), redirect_stdout(printed), redirect_stderr(printed):
            code = str(main(shlex.split(command)))
    except Exception as error:
        code = repr(error)
    return f"{code}\n{printed.getvalue()}"


def serve() -> None:
    """Answer calls until the input ends."""
    functions: dict[str, Callable[..., str]] = {
        function.__name__: function
        for function in (push, push_grown, combine, train, load, probe, describe, warmscale, typed)
    }
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if request["token"]:
            os.environ["HF_TOKEN"] = request["token"]
        try:
            answer = functions[request["function"]](*request["arguments"], **request["options"])
        except (ValueError, OSError) as error:
            answer = f"{type(error).__name__} {error}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
