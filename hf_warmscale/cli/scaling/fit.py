"""`warmscale scaling fit`: a law from a table of losses, or from the folders of runs."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.scaling.quantity import column, parameter
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb
from hf_warmscale.options import LAWS, LOSS_UNITS

if TYPE_CHECKING:
    from hf_warmscale.scaling import Frame, ScalingLaw

LAW_FILE = "law.json"


def add_arguments(parser: Parser) -> None:
    """Add the measurements, the form and the output."""
    parser.add_argument("points", nargs="+", metavar="RUNS_OR_TABLE", help="a .csv, .json or .jsonl, or run folders")
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder for law.json and the pictures")
    parser.add_argument("--form", choices=LAWS, default="chinchilla", metavar="F", help=", ".join(LAWS))
    parser.add_argument(
        "--unit", choices=LOSS_UNITS, default="nats", metavar="U", help="nats per token, bits per byte"
    )
    parser.add_argument("--columns", nargs="+", type=column, default=[], metavar="N=NAME", help="names in the table")
    parser.add_argument("--fixed", nargs="+", type=parameter, default=[], metavar="P=X", help="parameters not fitted")
    parser.add_argument("--bootstrap", type=int, default=100, metavar="B", help="fits to resampled runs (100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the resampling (0)")
    parser.add_argument("--mix-cooled", action="store_true", help="keep uncooled points beside cooled ones")


def run(arguments: Namespace) -> None:
    """Fit, write the law and its pictures, then show parameters, flags and backtest."""
    from hf_warmscale.scaling import draw_law, fit_scaling_law

    law = fit_scaling_law(
        read_points(arguments),
        form=arguments.form,
        fixed=dict(arguments.fixed),
        bootstrap=arguments.bootstrap,
        seed=arguments.seed,
        unit=arguments.unit,
        mix_cooled=arguments.mix_cooled,
    )
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    law.save(output / LAW_FILE)
    written = [output / LAW_FILE, *draw_law(law, output)]
    show_law(law)
    show(
        law.backtest.table(),
        title="Rollout: fit the smaller sizes, predict the next; mean relative errors",
        written=written,
        then=["warmscale", "scaling", "plan", "--law", output / LAW_FILE, "--help"],
    )


def read_points(arguments: Namespace) -> "Frame":
    """Read the points: of one table, or of the folders of runs."""
    from hf_warmscale.scaling import ladder_frame, make_frame, read_run, read_table

    first = Path(arguments.points[0])
    if len(arguments.points) == 1 and not first.is_dir():
        return make_frame(read_table(first, dict(arguments.columns)), arguments.form)
    return ladder_frame([read_run(folder) for folder in arguments.points])


def show_law(law: "ScalingLaw") -> None:
    """Show the parameters of a law, and what speaks against trusting it."""
    show([{"parameter": name, "value": value} for name, value in law.parameters.items()], title=f"The law {law.form}")
    for flag in law.flags:
        print(f"Flag: {flag}")


FIT = Verb(
    name="fit",
    summary="fit a scaling law to measured losses",
    description="Fit E + A/N^alpha + B/D^beta (chinchilla), a N^b + c at fixed data (power), or the law of grown "
    "models, to a table with the columns N, D, loss and run, or to the cooled ends of runs. Shows what speaks against "
    "trusting the fit, and how it would have predicted the larger sizes.",
    example="warmscale scaling fit losses.csv --output law",
    add_arguments=add_arguments,
    run=run,
)
