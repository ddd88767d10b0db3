"""Plots: panels, axes, the legend, and which settings a sweep's curves are of."""

import itertools

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

from diffjax.evaluation import panels, plots
from diffjax.evaluation.panels import Curve, Panel
from diffjax.inference.image_grids import BACKGROUND

MEASURES = {"fd_pixels": "FD-pixels (lower is better)", "accuracy": "classifier accuracy (higher is better)"}


def rows(accuracy=0.99, **settings):
    """Returns a row for each combination of settings; the distance falls with the steps."""
    combinations = (dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values()))
    return [
        {
            **{"steps": 10, **combination},
            "fd_pixels": 3.0 / combination.get("steps", 10),
            "accuracy": accuracy,
            "rms_to_finest_grid": None,
            "seconds": 1.0,
            "compile_seconds": 0.0,
            "not_finite": 0,
            "standard_errors": {"fd_pixels": 0.1, "accuracy": 0.01, "rms_to_finest_grid": None},
        }
        for combination in combinations
    ]


def rendered(figure):
    panels.pixels(figure)
    return figure.axes


def curves(axes):
    """Returns the lines between points of axes, without the line of real images."""
    return [line for line in axes.lines if line.get_linestyle() not in ("None", "none") and len(line.get_xdata()) > 2]


def ticks(axis):
    low, high = sorted(axis.get_view_interval())
    return [
        label.get_text()
        for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        if low <= place <= high
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10])
def test_panels_have_at_most_three_columns(count):
    axis = panels.horizontal_axis("steps", ["5", "10"])
    figure = panels.plot([Panel(f"metric {i}", [Curve("", [5, 10], [1, 2])]) for i in range(count)], axis)
    assert len(rendered(figure)) == count
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) <= 3
    assert not figure.legends


@pytest.mark.parametrize("count", [2, 9, 30])
@pytest.mark.parametrize("label", ["{}", "a sampler with a long name and many options, guidance {}, eta 0.5"])
def test_the_legend_covers_no_panel(count, label):
    axis = panels.horizontal_axis("steps", ["5", "10", "20"])
    of_panel = [Curve(label.format(i), [5, 10, 20], [i, i + 1, i + 2]) for i in range(count)]
    figure = panels.plot([Panel("a metric", of_panel, real=3.0), Panel("another", of_panel)], axis, "sampler", "title")
    (legend,) = (axes_list := rendered(figure)) and figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == count + 1  # and real images
    for axes in axes_list:
        assert not box.overlaps(axes.get_tightbbox())
        assert axes.get_window_extent().height > 100  # pixels
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


def test_only_several_seeds_have_error_bars():
    axis = panels.horizontal_axis("steps", ["5", "10"])
    one, several = Curve("a", [5, 10], [1, 2]), Curve("a", [5, 10], [1, 2], [0.1, 0.2])
    for curve, expected in ((one, 0), (several, 1)):
        (axes,) = panels.plot([Panel("", [curve])], axis).axes
        assert sum(isinstance(container, ErrorbarContainer) for container in axes.containers) == expected
    for axes in plots.sweep_figure(rows(steps=(5, 10), eta=(0.0, 1.0)), MEASURES).axes:
        assert not axes.containers


@pytest.mark.parametrize("values", [[0.3001, 0.3002, 0.3003], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-5.0, 0.5, 3.0]])
def test_a_linear_axis_has_plain_numbers_and_a_margin(values):
    axis = panels.horizontal_axis("steps", ["5", "10", "20"])
    (axes,) = rendered(panels.plot([Panel("", [Curve("", [5, 10, 20], values)])], axis))
    assert axes.yaxis.get_offset_text().get_text() == ""
    labels = ticks(axes.yaxis)
    assert len(labels) >= 2 and len(set(labels)) == len(labels)
    np.testing.assert_allclose([float(label) for label in labels], sorted(map(float, labels)))
    low, high = axes.get_ylim()
    span = high - low
    assert min(values) - low > 0.05 * span and high - max(values) > 0.05 * span


@pytest.mark.parametrize("high", [12.0, 300.0, 1e6])
def test_a_logarithmic_axis_has_plain_numbers_and_a_margin(high):
    axis = panels.horizontal_axis("steps", ["5", "10"])
    (axes,) = rendered(panels.plot([Panel("", [Curve("", [5, 10], [high, 1.0])])], axis))
    assert axes.get_yscale() == "log"
    labels = ticks(axes.yaxis)
    assert len(labels) >= 2 and "$" not in "".join(labels) and len(labels) < 12
    low, top = axes.get_ylim()
    assert low < 1 and top > high


def test_steps_are_on_a_logarithmic_axis_with_plain_numbers():
    (axes, *_) = rendered(plots.sweep_figure(rows(steps=(5, 10, 20, 250)), MEASURES))
    assert axes.get_xscale() == "log" and ticks(axes.xaxis) == ["5", "10", "20", "250"]
    assert axes.get_xlim()[0] < 5 and axes.get_xlim()[1] > 250


def test_labels_of_near_ticks_do_not_overlap():
    steps = [*range(1, 40), 1000]
    (axes, *_) = rendered(plots.sweep_figure(rows(steps=steps), MEASURES))
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert 4 < len(boxes) < 40
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_curve_per_setting_and_none_for_what_is_equal():
    figure = plots.sweep_figure(rows(sampler=("ddim", "heun"), guidance=(1.0,), steps=(5, 10, 20)), MEASURES)
    rendered(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ddim", "heun"]
    assert figure.get_suptitle() == "guidance 1"
    assert all(len(curves(axes)) == 2 for axes in figure.axes)


def test_another_numeric_setting_is_the_axis_if_the_steps_are_equal():
    figure = plots.sweep_figure(rows(sampler=("ddim", "heun"), guidance=(1.0, 2.0, 4.0)), MEASURES)
    (axes, _) = rendered(figure)
    assert axes.get_xlabel() == "guidance" and ticks(axes.xaxis) == ["1", "2", "4"]
    assert len(curves(axes)) == 2 and figure.get_suptitle() == "10 steps"


def test_steps_of_a_pipeline_are_those_of_a_stage():
    settings = [{**row, "decoder:steps": row["steps"]} for row in rows(steps=(5, 10, 20))]
    (axes, _) = rendered(plots.sweep_figure(settings, MEASURES))
    assert len(curves(axes)) == 1
    (axes, _) = rendered(plots.sweep_figure(rows(**{"prior:steps": (2, 4, 8)}), MEASURES))
    assert axes.get_xlabel() == "prior:steps" and len(curves(axes)) == 1


def test_settings_without_an_order_are_points():
    figure = plots.sweep_figure(rows(sampler=("ddim", "heun", "unipc")), MEASURES)
    (axes, _) = rendered(figure)
    assert not curves(axes) and not figure.legends
    assert ticks(axes.xaxis) == ["ddim", "heun", "unipc"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 1, 2])


def test_a_sweep_of_one_cell_has_no_curve(tmp_path):
    one = rows(steps=(5,))
    assert plots.sweep_figure(one, MEASURES, {"accuracy": 0.9}) is None
    plots.sweep(tmp_path / "one.png", one, MEASURES, [np.zeros((4, 8, 8, 1), np.uint8)])
    image = np.asarray(Image.open(tmp_path / "one.png"))
    assert set(np.unique(image[-12:])) == {BACKGROUND} and (image == 255).mean() < 0.01


def test_a_sweep_without_metrics_has_samples_only(tmp_path):
    bare = [{"steps": steps, "standard_errors": {}, "seconds": 1.0} for steps in (5, 10)]
    assert plots.sweep_figure(bare, MEASURES) is None
    plots.sweep(tmp_path / "bare.png", bare, MEASURES, [np.zeros((4, 8, 8, 4), np.uint8)] * 2)
    assert Image.open(tmp_path / "bare.png").mode == "RGB"


def test_a_sweep_shows_the_pixels_of_its_samples(tmp_path):
    """The image has the samples of every row, enlarged eight times."""
    settings = rows(steps=(5, 10), eta=(0.0, 1.0))
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 256, (12, 8, 8, 3), np.uint8) for _ in settings]
    plots.sweep(tmp_path / "sweep.png", settings, MEASURES, samples, {"accuracy": 0.9})
    image = np.asarray(Image.open(tmp_path / "sweep.png"))
    for sample in (some[i] for some in samples for i in (0, plots.MAX_EXAMPLES - 1)):
        enlarged = sample.repeat(8, 0).repeat(8, 1)
        corners = np.argwhere((image[: 1 - 64, : 1 - 64] == enlarged[0, 0]).all(-1))
        assert any((image[y : y + 64, x : x + 64] == enlarged).all() for y, x in corners)


def test_terms_of_the_bound(tmp_path):
    terms = {"t": [1000, 100, 10, 1], "bits_per_dim": [0.0, 1e-4, 0.01, 1.2]}
    plots.bound_terms(tmp_path / "nll.png", terms, "terms")
    assert min(Image.open(tmp_path / "nll.png").size) > 300
