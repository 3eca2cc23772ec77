"""`warmscale scaling predict`: the loss of a larger model from the runs of a ladder."""

from argparse import Namespace

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.scaling.quantity import parameter, whole
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add the runs and what to predict."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the output_dir of warmscale train, cooled")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--hidden-size", type=positive_int, metavar="N", help="of the model to predict")
    size.add_argument("--num-parameters", type=whole, metavar="N", help="of the model to predict, such as 360M")
    parser.add_argument("--tokens", type=whole, required=True, metavar="T", help="of its training, such as 5B")
    parser.add_argument("--fixed", nargs="+", type=parameter, default=[], metavar="P=X", help="parameters not fitted")
    parser.add_argument("--bootstrap", type=int, default=100, metavar="B", help="fits to resampled runs (100)")
    parser.add_argument("--output", default="prediction.json", metavar="JSON", help="the file to write")


def run(arguments: Namespace) -> None:
    """Predict, write the JSON, then show the loss, the flags and the backtest."""
    from hf_warmscale.checkpoints import write_json
    from hf_warmscale.scaling import predict_loss

    found = predict_loss(
        arguments.runs,
        hidden_size=arguments.hidden_size,
        num_parameters=arguments.num_parameters,
        tokens=arguments.tokens,
        fixed=dict(arguments.fixed),
        bootstrap=arguments.bootstrap,
    )
    write_json(arguments.output, found.to_dict())
    low, high = found.interval or (None, None)
    show(
        [
            {
                "parameters": found.num_parameters,
                "tokens": found.tokens,
                "loss": found.loss,
                "95 % from": low,
                "to": high,
            }
        ],
        title="Predicted loss of one new run, in nats per token",
    )
    for flag in found.flags:
        print(f"Flag: {flag}")
    show(
        found.backtest.table(),
        title="Rollout: fit the smaller sizes, predict the next; mean relative errors",
        written=[arguments.output],
        then=["warmscale", "scaling", "plan", "--help"],
    )


PREDICT = Verb(
    name="predict",
    summary="predict the loss of a larger model from small runs",
    description="Fit a law to the cooled ends of the runs of a muP ladder and predict the loss of a larger model, "
    "with the interval of one new run and a backtest. Different bases, rates or data among the runs are flagged.",
    example="warmscale scaling predict runs/256 runs/512 runs/768 runs/1024 \\\n  --hidden-size 4096 --tokens 20B",
    add_arguments=add_arguments,
    run=run,
)
