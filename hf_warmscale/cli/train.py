"""`warmscale train`: one stage of (continual) pretraining, from a YAML file."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb

if TYPE_CHECKING:
    from hf_warmscale.training import ContinualTrainer

FIELDS = """\
fields that nearly every recipe names (--help-fields lists all of them):
  model_name_or_path           checkpoint, folder or Hub id to start from
  mixture                      {name: {path: PACKED, weight: 0.95, seen_by: CHECKPOINT}, ...}
  evaluation                   {name: PACKED, ...}
  schedule                     rewarm_cosine, infinite_cosine, infinite_inv_sqrt, wsd or constant, or
                               {name: wsd, warmup: 0.01, cooldown: 0.2}
  max_tokens or max_steps      length of the stage
  learning_rate                peak of the schedule
  output_dir                   run folder; run the same command again to continue from its last checkpoint

several processes:
  accelerate launch --config_file ACCELERATE.yaml -m hf_warmscale train CONFIG.yaml
"""


def add_arguments(parser: Parser) -> None:
    """Add the file; each of its fields is an option too."""
    parser.epilog = FIELDS
    parser.usage = "%(prog)s CONFIG.yaml [--field value ...] [--show-schedule PNG]"
    parser.forward_unknown_to = "overrides"
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the stage: model, data, schedule, arguments")
    parser.add_argument("--show-schedule", metavar="PNG", help="draw the learning rate and stop")
    parser.add_argument("--help-fields", action="store_true", help="list every field and stop")


def run(arguments: Namespace) -> None:
    """Train, draw the schedule, or list the fields."""
    from hf_warmscale.cli.quiet import show_slow_bars_only
    from hf_warmscale.training.recipe import configuration
    from hf_warmscale.training.recipe.run import show_schedule, train

    if arguments.help_fields:
        configuration.make_parser().print_help()
    elif arguments.config is None:
        raise ValueError("warmscale train needs a CONFIG.yaml; see warmscale train --help.")
    elif arguments.show_schedule is not None:
        schedule = show_schedule(arguments.config, arguments.show_schedule, arguments.overrides)
        peak = schedule.learning_rate
        show(
            [{"schedule": schedule.name, "steps": schedule.total_steps, "peak": peak, "end": schedule.min_lr}],
            written=[arguments.show_schedule],
            then=["warmscale", "train", arguments.config],
        )
    else:
        show_slow_bars_only()
        trainer = train(arguments.config, arguments.overrides)
        if trainer.is_world_process_zero():
            show_run(trainer)


def show_run(trainer: "ContinualTrainer") -> None:
    """Show the losses of a finished stage."""
    from hf_warmscale.checkpoints import run_checkpoints

    assert trainer.stage_run is not None and trainer.args.output_dir is not None
    record, state, output = trainer.stage_run.record, trainer.state, trainer.args.output_dir
    losses = {
        key: value
        for entry in state.log_history
        for key, value in entry.items()
        if key == "loss" or (key.startswith("eval_") and key.endswith("_loss"))
    }
    measured = {
        "steps": state.global_step,
        "tokens": record.progress.num_tokens(),
        "tokens of all stages": record.total_tokens(),
        **losses,
    }
    rows = [{"": name, "value": value} for name, value in measured.items()]
    show(rows, title=f"Stage {record.name}", written=[output], then=next_command(run_checkpoints(output)))


def next_command(saved: list[Path]) -> list[object]:
    """Return the command to type after a stage with these checkpoints, the oldest first."""
    if len(saved) < 2:
        return ["warmscale", "push", saved[0], "REPO_ID", "--private"] if saved else []
    return ["warmscale", "merge", *saved[-2:], "--output", "MERGED"]


TRAIN = Verb(
    name="train",
    summary="train one stage, or continue it",
    description="Train the stage that a YAML file describes. Every field is also an option, which overrides the file.",
    example="warmscale train continue.yaml --learning_rate 3e-4",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="run the same command again to continue from the last checkpoint.",
    when_out_of_memory="lower per_device_train_batch_size and raise gradient_accumulation_steps by as much, set "
    "activation_checkpointing or dtype: bfloat16, or train adapters with lora.",
)
