"""Coordinate check of muP, for `benchmark --coordinates`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax.errors import UserError, validate_integer
from diffjax.evaluation import panels
from diffjax.parsing import number
from diffjax.training import coordinate_check
from diffjax.typing import ImageSpec

DEFAULT_STEPS = 3


def print_coordinates(
    config: ConfigDict, spec: ImageSpec, batch: Mapping[str, Any], widths: Sequence[str], steps: int, plot: Path | None
) -> dict[str, Any]:
    """Trains a network of each width for some steps, with and without muP; prints and returns how activations grow.

    Args:
      batch: batch of all steps.
      widths: widths, as text.
      plot: PNG to write; None: none.

    Returns:
      Of each parametrization, the sizes of activations by width and step, and their slopes by step.

    Raises:
      UserError: an entry of `widths` is not a width, or there is only one.
    """
    try:
        numbers = sorted({validate_integer("coordinates", int(number(width, int))) for width in widths})
    except (ValueError, UserError) as error:
        raise UserError(f"--coordinates={','.join(widths)}: must be widths, such as 64,128,256") from error
    if len(numbers) < 2:
        raise UserError(f"--coordinates={','.join(widths)}: requires two widths or more, such as 64,128,256")
    base = config.train.get("mup_base_width", 0) or numbers[0]
    configs = {
        name: [coordinate_check.config_of_width(config, width, base_width) for width in numbers]
        for name, base_width in {"standard": 0, "muP": base}.items()
    }
    results: dict[str, Any] = {"widths": numbers, "base_width": base}
    for name, of_widths in configs.items():
        sizes = [coordinate_check.measure(each, spec, batch, steps) for each in of_widths]  # by width and step
        by_step = list(zip(*sizes, strict=True))
        slopes = [coordinate_check.slopes(numbers, of_step) for of_step in by_step]
        results[name] = {"sizes": sizes, "slopes": slopes}
    _print_table(results, steps)
    if plot:
        _figure(results, steps).savefig(plot)
    return results


def _print_table(results: dict[str, Any], steps: int) -> None:
    print(f"slopes of log(mean |activation|) over log(width), after {steps} steps; 0: independent of the width")
    last = {name: results[name]["slopes"][-1] for name in ("standard", "muP")}
    print(f"{'layer':32} {'standard':>9} {'muP':>9}")
    for layer in last["standard"]:
        print(f"{layer:32} " + " ".join(f"{last[name].get(layer, float('nan')):9.2f}" for name in last))
    largest = {name: max(map(abs, slopes.values())) for name, slopes in last.items()}
    print(f"{'largest |slope|':32} {largest['standard']:9.2f} {largest['muP']:9.2f}")


def _figure(results: dict[str, Any], steps: int) -> Any:
    """Returns the plot of sizes by width: a panel per parametrization and step, a curve per layer."""
    widths, shown = results["widths"], []
    for name in ("standard", "muP"):
        for step in range(steps + 1):
            of_step = [sizes[step] for sizes in results[name]["sizes"]]
            curves = [panels.Curve(layer, widths, [each[layer] or None for each in of_step]) for layer in of_step[0]]
            shown.append(panels.Panel(f"{name}, after {step} steps", curves))
    axis = panels.HorizontalAxis("width", widths, [str(width) for width in widths], logarithmic=True)
    return panels.plot(shown, axis, title="mean |activation|")
