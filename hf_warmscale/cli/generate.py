"""`warmscale generate`: text of a large base, steered by what a small model learnt in fine-tuning."""

import math
import warnings
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_warmscale.cli.documents import read_documents
from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_warmscale.decoding import EmulatedFineTuningForCausalLM

RECORD = "generation.json"
DTYPES = ("auto", "float32", "bfloat16", "float16")
MEASURED_TOKENS = 24
"""Generated per block length to find the fastest."""


def add_arguments(parser: Parser) -> None:
    """Add the members, the settings and the ways to generate."""
    parser.add_argument("base", metavar="BASE", help="the large base: a folder, a Hub id, or id@revision")
    parser.add_argument("--tuned", required=True, nargs="+", metavar="T", help="small tuned models, or adapters")
    parser.add_argument(
        "--reference", metavar="R", help="the small base that they were tuned from; not needed for an adapter"
    )
    settings = parser.add_argument_group("settings", "log p = s + sum w (t - s) + beta (l - s), normalised.")
    settings.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="one per tuned model; equal by default"
    )
    settings.add_argument("--beta", type=float, default=1.0, metavar="B", help="of the large base; 1 by default")
    settings.add_argument(
        "--upscale-top-p", type=float, metavar="P", help="add the large base only to this nucleus of the tuned model"
    )
    settings.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; as stored by default")
    settings.add_argument("--device", metavar="D", help="cuda, mps, ...; cpu by default")
    text = parser.add_argument_group("text")
    text.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    text.add_argument("--chat", action="store_true", help="show the tuned models the prompt in their chat template")
    text.add_argument("--max-new-tokens", type=positive_int, default=128, metavar="N", help="128 by default")
    text.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0, the default, is greedy")
    text.add_argument("--seed", type=int, default=0, metavar="S", help="of sampling; 0 by default")
    text.add_argument(
        "--speculative", action="store_true", help="let the (first) tuned model draft: the same distribution, faster"
    )
    text.add_argument(
        "--block-length", type=positive_int, metavar="K", help="tokens of a draft; measured on the prompt by default"
    )
    parser.add_argument("--eval-data", metavar="PATH", help="documents: show the loss of every member on them")
    parser.add_argument("--output", metavar="DIR", help=f"a new folder for the names of the members and {RECORD}")


def run(arguments: Namespace) -> None:
    """Load the members, score documents, generate, and save what was asked for."""
    refuse_at_once(arguments)
    from hf_warmscale.cli.quiet import show_slow_bars_only
    from hf_warmscale.decoding import EmulatedFineTuningForCausalLM

    show_slow_bars_only()
    model = EmulatedFineTuningForCausalLM.from_members(
        arguments.base,
        arguments.tuned,
        arguments.reference,
        weights=arguments.weights,
        beta=arguments.beta,
        upscale_top_p=arguments.upscale_top_p,
        dtype=arguments.dtype,
    )
    if arguments.device is not None:
        model.to(arguments.device)
    tokenizer = find_shared_tokenizer(arguments)
    record: dict[str, Any] = {"members": model.config.members}
    if arguments.eval_data is not None:
        record["evaluation"] = evaluate(model, tokenizer, arguments.eval_data)
        rows = [{name: row[name] for name in ("model", "nll", "bits_per_byte")} for row in record["evaluation"]]
        show(rows, title="Nats per token and bits per byte on the documents")
    if arguments.prompt is not None:
        record["generation"] = generate(model, tokenizer, arguments)
    if arguments.output is not None:
        save(model, arguments.output, record)


def refuse_at_once(arguments: Namespace) -> None:
    """Refuse what can be known before anything is loaded.

    Raises:
        ValueError: if there is nothing to do, or options contradict each other.
    """
    from hf_warmscale.checkpoints import refuse_existing

    if arguments.prompt is None and arguments.eval_data is None:
        raise ValueError("There is no text to continue or to score; add --prompt TEXT or --eval-data PATH.")
    if arguments.prompt == "":
        raise ValueError("--prompt is empty; give some text to continue.")
    if arguments.block_length is not None and not arguments.speculative:
        raise ValueError("--block-length is the length of a draft; add --speculative.")
    if arguments.chat and arguments.speculative:
        raise ValueError(
            "--chat gives the tuned models another prompt, so they cannot draft; leave out one of the two."
        )
    if not 0 <= arguments.temperature < math.inf:
        raise ValueError(f"--temperature is {arguments.temperature}; give 0 for greedy, or a number above.")
    if arguments.output is not None:
        refuse_existing(arguments.output)
    if arguments.device is not None:
        refuse_unusable(arguments.device)


def refuse_unusable(device: str) -> None:
    """Refuse a device that is not in this machine, before models are loaded for it.

    Raises:
        ValueError: naming it.
    """
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"--device {device} cannot be used ({reason}); leave it out for the CPU.") from error


def find_shared_tokenizer(arguments: Namespace) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of the tuned model, which may know a chat template, or that of the base."""
    from hf_warmscale.checkpoints import find_tokenizer, load_tokenizer

    return find_tokenizer(arguments.tuned[0]) or load_tokenizer(arguments.base)


def evaluate(
    model: "EmulatedFineTuningForCausalLM", tokenizer: "PreTrainedTokenizerBase", path: str
) -> list[dict[str, Any]]:
    """Return the likelihood of documents under every member and under the combination."""
    from hf_warmscale.evaluation.evaluation_set import EvaluationSet, default_max_length

    prepared = EvaluationSet.from_documents(read_documents(path), tokenizer, max_length=default_max_length(model))
    rows = []
    for member in model.members:
        with member.as_member():
            rows.append({"model": member.role, **prepared.nll(member.model).summary()})
    return [*rows, {"model": "combined", **prepared.nll(model).summary()}]


def generate(
    model: "EmulatedFineTuningForCausalLM", tokenizer: "PreTrainedTokenizerBase", arguments: Namespace
) -> dict[str, Any]:
    """Print the text while it is generated, and return what is worth recording."""
    import torch
    from transformers import TextStreamer

    inputs = prompts(tokenizer, arguments)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    options = sampling(arguments)
    options["max_new_tokens"] = fitting(model, inputs, arguments.max_new_tokens)
    record: dict[str, Any] = {"prompt": arguments.prompt, **options}
    if arguments.speculative:
        record["block_lengths"] = prepare_draft(model, inputs["input_ids"], options, arguments.block_length)
        options["assistant_model"] = model.tuned[0]
    torch.manual_seed(arguments.seed)
    # A continuation is read with its beginning, an answer without the question.
    streamer = TextStreamer(tokenizer, skip_prompt=arguments.chat, skip_special_tokens=True)
    produced = model.generate(**inputs, **options, streamer=streamer)
    new = produced[0, inputs["input_ids"].shape[1] :]
    return {**record, "text": tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}


def fitting(model: "EmulatedFineTuningForCausalLM", inputs: dict[str, Any], wanted: int) -> int:
    """Return how many of the tokens asked for fit behind the prompt; one that fills a window is refused later."""
    for member in model.members:
        prompt = inputs.get(f"{member.role.partition('[')[0]}_input_ids", inputs["input_ids"])
        room = wanted if member.window is None else member.window - prompt.shape[1]
        if 0 < room < wanted:
            warnings.warn(
                f"Of {wanted} new tokens {room} fit into the window of the {member.role} model.", stacklevel=2
            )
            wanted = room
    return wanted


def prompts(tokenizer: "PreTrainedTokenizerBase", arguments: Namespace) -> dict[str, Any]:
    """Return the tokens of the prompt, and with `--chat` those that the tuned models see.

    Raises:
        ValueError: if the tokenizer has no chat template, or another tuned model has another one.
    """
    from hf_warmscale.checkpoints import find_tokenizer

    plain = tokenizer(arguments.prompt, return_tensors="pt", return_token_type_ids=False)
    if not arguments.chat:
        return dict(plain)
    if tokenizer.chat_template is None:
        raise ValueError(f"{arguments.tuned[0]} has no chat template; leave --chat out.")
    for name in arguments.tuned[1:]:
        other = find_tokenizer(name)
        if other is not None and other.chat_template != tokenizer.chat_template:
            raise ValueError(
                f"{name} has another chat template than {arguments.tuned[0]}; with --chat they share one."
            )
    turns = [{"role": "user", "content": arguments.prompt}]
    chat: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return {
        **plain,
        "tuned_input_ids": chat["input_ids"],
        "tuned_attention_mask": chat["attention_mask"],
    }


def sampling(arguments: Namespace) -> dict[str, Any]:
    """Return the options of `generate`."""
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    return {**options, "temperature": arguments.temperature, "top_k": 0} if arguments.temperature > 0 else options


def prepare_draft(
    model: "EmulatedFineTuningForCausalLM", prompt: Any, options: dict[str, Any], block_length: int | None
) -> list[dict[str, Any]]:
    """Set the block length of the draft: the one given, or the fastest on the first tokens of this prompt."""
    from dataclasses import asdict
    from typing import cast

    from transformers import PreTrainedModel

    from hf_warmscale.decoding import choose_block_length
    from hf_warmscale.decoding.speculation import set_block_length

    draft = cast(PreTrainedModel, model.tuned[0])
    if block_length is not None:
        set_block_length(draft, block_length)
        return []
    measured = choose_block_length(
        model, draft, [prompt], **{**options, "max_new_tokens": min(MEASURED_TOKENS, options["max_new_tokens"])}
    )
    rows = [{**asdict(row), "accepted": row.accepted if row.block_length else None} for row in measured]
    show(rows, title="Draft lengths on the first tokens (0 is no draft)")
    return rows


def save(model: "EmulatedFineTuningForCausalLM", output: str, record: dict[str, Any]) -> None:
    """Write the names of the members, the card and the record."""
    from hf_warmscale.checkpoints import write_json

    model.save_pretrained(output)
    write_json(Path(output) / RECORD, record)
    show([], written=[output])


GENERATE = Verb(
    name="generate",
    summary="generate with a large base, steered by a small tuned model",
    description="Use a large base, a small base and a small tuned model together (emulated fine-tuning): the large "
    "one writes as if it had been tuned. With --eval-data the loss of each of them and of the combination is shown.",
    example="warmscale generate continued/checkpoint-10000 --tuned me/small-tuned \\\n"
    '  --reference HuggingFaceTB/SmolLM2-135M --prompt "The growth of"',
    add_arguments=add_arguments,
    run=run,
)
