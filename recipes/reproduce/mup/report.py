"""Turn the stored runs into `results.md` and the pictures, without training anything.

python recipes/reproduce/mup/report.py [--output FOLDER]
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from growth import growth_rows

from hf_warmscale.checkpoints import write_text
from hf_warmscale.report import markdown_table
from hf_warmscale.tuning import CoordinateResult, TransferResult, find_optima
from hf_warmscale.tuning.coordinate_figure import draw_coordinates
from hf_warmscale.tuning.transfer_figure import draw_transfer

HERE = Path(__file__).parent


def main() -> None:
    """Parse the arguments and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    output = parser.parse_args().output
    sections = [transfer_section(path.parent) for path in sorted(output.glob("transfer-*/transfer.json"))]
    sections += [growth_section(path.parent) for path in sorted(output.glob("growth*/growth.json"))]
    sections += [coordinate_section(path.parent) for path in sorted(output.glob("coordinates-*/coordinates.json"))]
    write_text(output / "results.md", "\n".join(sections))
    print((output / "results.md").read_text())


def transfer_section(folder: Path) -> str:
    """Fit the best learning rates of one study again from its runs."""
    results = [read_transfer(content) for content in json.loads((folder / "transfer.json").read_text())]
    draw_transfer(folder / "transfer.png", results)
    rows = [row for result in results for row in result.rows()]
    return f"## {folder.name}\n\n{markdown_table(rows)}"


def growth_section(folder: Path) -> str:
    """Fit the best learning rate of every grown size again, and set it beside the inherited one."""
    content = json.loads((folder / "growth.json").read_text())
    result = read_transfer(content)
    draw_transfer(folder / "growth.png", [result])
    return f"## {folder.name}\n\n{markdown_table(growth_rows(content['inherited_lr'], result))}"


def coordinate_section(folder: Path) -> str:
    """List the slopes of one coordinate check."""
    contents = json.loads((folder / "coordinates.json").read_text())
    results = [read_coordinates(content) for content in contents]
    draw_coordinates(folder / "coordinates.png", results)
    rows = [
        {"activation": name, **{f"{result.label}: slope": round(result.slopes[name], 3) for result in results}}
        for name in results[0].slopes
    ]
    verdicts = [f"{result.label}: {'pass' if result.passed else f'{len(result.failures)} fail'}" for result in results]
    return f"## {folder.name} ({', '.join(verdicts)})\n\n{markdown_table(rows)}"


def read_coordinates(content: dict[str, Any]) -> CoordinateResult:
    """Read what `CoordinateResult.to_dict` wrote; JSON has made the sizes strings."""
    changes = {
        name: {int(size): steps for size, steps in by_size.items()} for name, by_size in content["changes"].items()
    }
    return CoordinateResult(content["label"], content["axis"], content["tolerance"], changes, content["slopes"])


def read_transfer(content: dict[str, Any]) -> TransferResult:
    """Read what `TransferResult.to_dict` wrote."""
    curves: dict[int, dict[float, dict[int, float]]] = {}
    for point in content["points"]:
        loss = math.inf if point["loss"] is None else point["loss"]
        curves.setdefault(point["size"], {}).setdefault(point["lr"], {})[point["seed"]] = loss
    return TransferResult(content["rule"], content["axis"], curves, find_optima(curves))


if __name__ == "__main__":
    main()
