"""Entries over seeds, orderings and failures, from results written by hand."""

import json
import math
import re

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image
from scipy import stats

from diffjax.errors import UserError
from diffjax.inference import image_grids
from diffjax.reproduce import Axis, Measure, Ordering, Paper, SameBest, figures, report, steps
from diffjax.reproduce.outcome import Outcome
from diffjax.reproduce.plan import make_groups
from diffjax.reproduce.store import Store
from diffjax.reproduce.verdicts import describe, difference

RATES = ("low", "high")


@pytest.fixture
def outcome(make):
    """Returns a function that returns the outcome of values by (rate, steps, seed); None is pending, text an error."""

    def make_outcome(values, better="lower", labels=None, sampling=None, **fields):
        seeds = sorted({key[2] for key in values})
        measure = Measure("fd_pixels", better=better)
        experiment = make({"seeds": seeds, "axes": labels or {}}, measures=[measure], **fields)
        cells = [cell for unit in make_groups(experiment, experiment.scales["smoke"], {}) for cell in unit.cells]

        def result(cell):
            value = values.get((cell.labels["rate"], int(cell.labels["steps"]), int(cell.labels["seed"])))
            if value is None or isinstance(value, str):
                return value and {"error": value}
            estimate = {"value": value, "standard_error": sampling}
            provenance = {"samples": 12, "warnings": ["few samples"]}
            return {"estimates": {"fd_pixels": estimate}, "provenance": provenance, "seconds": 1.0}

        return Outcome(experiment, [measure], cells, {cell.key: result(cell) for cell in cells})

    return make_outcome


def table(function, seeds=(0, 1, 2)):
    return {(rate, n, seed): function(rate, n, seed) for rate in RATES for n in (2, 4) for seed in seeds}


MORE_STEPS = Ordering(claim="", order=[{"steps": "4"}, {"steps": "2"}])


def test_entries_are_means_and_deviations_over_seeds(outcome):
    computed = outcome(table(lambda rate, n, seed: n + seed))
    entry = computed.entry(computed.measures[0], {"rate": "low", "steps": "4"})
    assert entry.mean == 5 and entry.error == pytest.approx(1)


def test_equal_values_have_no_deviation(outcome):
    computed = outcome(table(lambda *_: 0.1))
    assert computed.entry(computed.measures[0], {"rate": "low", "steps": "4"}).error == 0  # of floats it is 1.7e-17


def test_the_error_of_one_seed_is_of_its_samples(outcome):
    labels = {"rate": "low", "steps": "4"}
    known = outcome(table(lambda *_: 1.0, seeds=(0,)), sampling=0.2)
    assert known.entry(known.measures[0], labels).error == 0.2
    unknown = outcome(table(lambda *_: 1.0, seeds=(0,)))
    assert math.isnan(unknown.entry(unknown.measures[0], labels).error)


def test_a_share_without_a_stored_error_gets_one_from_its_samples(outcome):
    computed = outcome(table(lambda *_: 0.5, seeds=(0,)))
    cell = computed.cell({"rate": "low", "steps": "2", "seed": "0"})
    computed._results[cell.key]["estimates"]["caption_accuracy"] = {"value": 0.5, "standard_error": None}
    error = computed.entry(Measure("caption_accuracy"), {"rate": "low", "steps": "2"}).error
    assert error == pytest.approx(math.sqrt(0.25 / 12), rel=0.1)  # binomial


def test_an_ordering_that_holds_everywhere(outcome):
    verdict = outcome(table(lambda rate, n, seed: 10.0 - n + 0.1 * seed), sampling=0.1).verdict(MORE_STEPS)
    assert verdict.word == "holds"
    assert (verdict.settings, verdict.held, verdict.reversed, verdict.seeds) == (2, 2, 0, 3)
    assert verdict.weakest.value == pytest.approx(2.0)


def test_the_direction_of_the_measure_counts(outcome):
    values = table(lambda rate, n, seed: 10.0 - n)
    verdict = outcome(values, better="higher", sampling=0.1).verdict(MORE_STEPS)
    assert verdict.word == "does not hold" and verdict.reversed == 2


def test_an_ordering_within_its_uncertainty_is_undecided(outcome):
    gain = {0: 3.0, 1: 1.0, 2: -1.0}
    verdict = outcome(table(lambda rate, n, seed: 0.0 if n == 2 else -gain[seed])).verdict(MORE_STEPS)
    assert verdict.word == "undecided" and verdict.seeds == 3
    assert verdict.weakest[:2] == pytest.approx((1.0, 2 / math.sqrt(3)))  # s = 2 of three seeds


def test_one_image_of_200_more_is_undecided(outcome):
    values = table(lambda rate, n, seed: 0.240 if n == 2 else 0.245, seeds=(0,))
    error = math.sqrt(0.24 * 0.76 / 200)
    computed = outcome(values, better="higher", sampling=error)
    assert computed.verdict(MORE_STEPS).word == "undecided"
    assert "undecided in 2 of 2 settings; 1 seed, the interval covers the samples only" in describe(
        computed.verdict(MORE_STEPS)
    )


def test_settings_are_compared_at_the_best_label_of_an_axis(outcome):
    values = {("low", 2): 1.0, ("low", 4): 9.0, ("high", 2): 5.0, ("high", 4): 2.0}
    best = Ordering(claim="", order=[{"rate": "low"}, {"rate": "high"}], best_of="steps")
    verdict = outcome(table(lambda rate, n, seed: values[rate, n] + 0.1 * seed), sampling=0.1).verdict(best)
    assert (verdict.word, verdict.settings, verdict.weakest.value) == ("holds", 1, pytest.approx(1.0))  # 1 against 2
    higher = outcome(table(lambda rate, n, seed: values[rate, n]), better="higher", sampling=0.1).verdict(best)
    assert (higher.word, higher.weakest.value) == ("holds", pytest.approx(4.0))  # 9 against 5
    failed = table(lambda rate, n, seed: values[rate, n]) | {("low", 2, seed): "loss = nan" for seed in (0, 1, 2)}
    assert outcome(failed, sampling=0.1).verdict(best).word == "does not hold"  # 9 against 2
    with pytest.raises(UserError, match="rates"):
        outcome(failed, orderings=[Ordering(claim="", order=[], best_of="rates")])


def test_an_order_of_a_descriptive_measure_names_its_direction(outcome):
    values = table(lambda rate, n, seed: n + 0.1 * seed)
    for direction, word in (("lower", "does not hold"), ("higher", "holds")):
        ordering = Ordering(claim="", order=MORE_STEPS.order, direction=direction)
        assert outcome(values, better="neither", sampling=0.1, orderings=[ordering]).verdict(ordering).word == word
    with pytest.raises(UserError, match="neither direction of fd_pixels is better; set `direction` to lower or higher"):
        outcome(values, better="neither", orderings=[MORE_STEPS])


SAME_BEST = SameBest(claim="", axis="steps", along="rate")


def test_the_best_label_is_the_same_along_another_axis(outcome):
    best_is_4 = outcome(table(lambda rate, n, seed: 10.0 - n + (rate == "high") + 0.1 * seed), sampling=0.1)
    verdict = best_is_4.verdict(SAME_BEST)
    assert (verdict.word, verdict.settings, verdict.seeds) == ("holds", 1, 3)
    assert verdict.weakest.value == pytest.approx(2.0)  # at the second rate, 4 steps against 2
    higher = outcome(table(lambda rate, n, seed: n + 0.1 * seed), better="higher", sampling=0.1)
    assert higher.verdict(SAME_BEST).word == "holds"


def test_the_best_label_differs_along_another_axis(outcome):
    opposite = outcome(table(lambda rate, n, seed: n if rate == "low" else -n), sampling=0.1)
    assert opposite.verdict(SAME_BEST).word == "does not hold"
    equal = outcome(table(lambda rate, n, seed: n if rate == "low" else 0.1 * seed * (-1) ** n), sampling=0.1)
    assert equal.verdict(SAME_BEST).word == "undecided"
    one_rate = SameBest(claim="", axis="steps", along="rate", where={"rate": ("low",)})
    assert opposite.verdict(one_rate).word == "not measured"
    pending = outcome({key: None if key[0] == "high" else 1.0 for key in table(lambda *_: 0.0)})
    assert pending.verdict(SAME_BEST).word == "not measured"


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_seeds_are_compared_by_students_paired_test(seeds):
    rng, held = np.random.default_rng(0), 0
    for gain in np.linspace(-3, 3, 13):
        better, worse = gain + rng.normal(size=seeds), rng.normal(size=seeds)
        expected = stats.ttest_rel(better, worse)
        computed = difference(better, worse, [None] * seeds)
        interval = computed.value - computed.margin, computed.value + computed.margin
        assert interval == pytest.approx(expected.confidence_interval(0.95))
        assert (computed.holds, computed.reversed) == tuple(
            expected.pvalue < 0.05 and sign * expected.statistic > 0 for sign in (1, -1)
        )
        held += computed.holds
    assert held or seeds == 2


def test_the_samples_of_one_seed_have_a_normal_interval_which_no_other_interval_is_below():
    computed = difference([1.0], [0.2], [(0.3, 0.4)])
    low, high = stats.norm.interval(0.95, 0.8, 0.5)
    assert (computed.value - computed.margin, computed.value + computed.margin) == pytest.approx((low, high))
    close = difference([1.0, 1.01], [0.2, 0.2], [(0.3, 0.4)] * 2)  # agree by chance
    assert close.margin == pytest.approx((high - low) / 2 / math.sqrt(2))
    assert difference([1.0, 2.0], [0.2, 0.2], [None, (0.3, 0.4)]).margin == pytest.approx(
        stats.t.ppf(0.975, 1) * 0.5  # a sampling error is not known
    )


def test_settings_that_failed_or_are_not_done_are_not_counted_as_held(outcome):
    values = table(lambda rate, n, seed: float(-n), seeds=(0,))
    for missing in ("step 3: loss = nan", None):
        values["high", 4, 0] = missing
        verdict = outcome(values, sampling=0.1).verdict(MORE_STEPS)
        assert (verdict.word, verdict.settings, verdict.held, verdict.missing) == ("holds in part", 2, 1, 1)
        assert "holds in 1, not measured in 1 of 2 settings" in describe(verdict)
    without = outcome({key: 0.0 if key[0] == "low" else math.nan for key in values}, sampling=0.1)
    assert (without.verdict(MORE_STEPS).settings, without.verdict(MORE_STEPS).missing) == (1, 0)  # never has a value


def test_a_best_label_that_failed_elsewhere_is_not_the_best_there(outcome):
    values = table(lambda rate, n, seed: 10.0 - n, seeds=(0,))
    values["high", 4, 0] = "step 3: loss = nan"
    verdict = outcome(values, sampling=0.1).verdict(SAME_BEST)
    assert (verdict.word, verdict.settings, verdict.missing) == ("not measured", 1, 1)


def test_settings_are_not_counted_as_seeds(outcome):
    computed = outcome(table(lambda rate, n, seed: float(-n), seeds=(0,)), sampling=0.1).verdict(MORE_STEPS)
    assert (computed.settings, computed.seeds, computed.word) == (2, 1, "holds")


def test_one_seed_without_any_error_is_undecided(outcome):
    verdict = outcome(table(lambda rate, n, seed: -100.0 * n, seeds=(0,))).verdict(MORE_STEPS)
    assert verdict.word == "undecided" and "no error is known" in describe(verdict)


def test_an_ordering_that_holds_in_one_setting_only(outcome):
    values = table(lambda rate, n, seed: n if rate == "low" else -n)
    computed = outcome(values, sampling=0.1)
    verdict = computed.verdict(MORE_STEPS)
    assert (verdict.word, verdict.held, verdict.reversed) == ("holds in part", 1, 1)
    high = Ordering(claim="", order=MORE_STEPS.order, where={"rate": ("high",)})
    assert computed.verdict(high).word == "holds"


def test_equal_differences_without_a_known_error_are_undecided(outcome):
    """Seeds that agree exactly, up to rounding, do not show that another training would agree too."""
    computed = difference([1.1, 2.3, 3.7], [0.1, 1.3, 2.7], [None] * 3)
    assert computed.value == pytest.approx(1) and math.isinf(computed.margin) and math.isnan(computed.error)
    assert not computed.holds and not computed.reversed
    assert outcome(table(lambda rate, n, seed: float(-n))).verdict(MORE_STEPS).word == "undecided"
    assert outcome(table(lambda rate, n, seed: float(-n)), sampling=0.1).verdict(MORE_STEPS).word == "holds"


def test_a_tie_is_undecided(outcome):
    assert outcome(table(lambda *_: 1.0)).verdict(MORE_STEPS).word == "undecided"


def test_cells_that_failed_or_are_not_done_are_left_out(outcome):
    values = table(lambda rate, n, seed: float(-n))
    values["low", 2, 1] = "step 3: loss = nan"
    values["high", 4, 2] = None
    values["high", 4, 0] = math.nan
    computed = outcome(values)
    assert (computed.verdict(MORE_STEPS).seeds, computed.done) == (1, 11)
    assert computed.errors == {"rate low, steps 2, seed 1": "step 3: loss = nan"}
    entry = computed.entry(computed.measures[0], {"rate": "low", "steps": "2"})
    assert (len(entry.known), entry.failed, entry.pending) == (2, 1, 0)
    nothing = outcome({key: None for key in values})
    assert nothing.verdict(MORE_STEPS).word == "not measured"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_settings_are_called_ordered_in_at_most_one_case_in_twenty(seeds):
    """Simulates trainings that differ by 1, samples by 0.5, of two settings that are the same."""
    rng, called, trials = np.random.default_rng(0), 0, 4000
    for _ in range(trials):
        spread = 1.0 if seeds > 1 else 0.0  # one seed has no other training
        values = spread * rng.normal(size=(2, seeds)) + 0.5 * rng.normal(size=(2, seeds))
        computed = difference(*values, [(0.5, 0.5)] * seeds)
        called += computed.holds or computed.reversed
    assert called / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    if seeds == 1:
        assert called / trials >= 0.03  # and the interval is not wider than it must be


def test_a_difference_of_many_errors_is_found():
    computed = difference([1.0, 1.1, 0.9], [0.0, 0.1, -0.1], [(0.05, 0.05)] * 3)
    assert computed.holds and computed.value == pytest.approx(1.0)


def test_the_share_of_runs_that_fail(outcome):
    values = table(lambda rate, n, seed: float(seed))
    values["low", 2, 0] = "not finite"
    computed = outcome(values)
    share = computed.failures(computed.measures[0], {"rate": "low", "steps": "2"}, threshold=1.5)
    assert sorted(share.known) == [0, 1, 1]  # an error, 1, and 2 above 1.5


def test_a_report_is_complete_and_self_contained(outcome, tmp_path):
    values = table(lambda rate, n, seed: 10.0 - n + seed)
    values["low", 2, 1] = "step 3: loss = nan | inf"
    orderings = [Ordering(claim="more is better", order=MORE_STEPS.order)]
    computed = outcome(values, sampling=0.1, orderings=orderings, failure_threshold=9.0)
    path = report.write(
        tmp_path / "r", computed, "smoke", computed.experiment.scales["smoke"], Store(tmp_path), "the command"
    )
    text = path.read_text()
    assert "| low | 9.0 ± 1.4 (1 failed) | 7.0 ± 1.0 | 3.50 | – |" in text  # ours, then the paper's
    assert "The paper's setting: elsewhere." in text
    assert "| more is better | **holds** (holds in 2 of 2 settings; 2 seeds; smallest difference 2.0 ± 0.2)" in text
    assert "loss = nan \\| inf" in text
    assert "| low | 2 of 3 | 0 of 3 |" in text
    assert "    the command" in text and "Warning: few samples." in text
    page = path.with_suffix(".html").read_text()
    assert page.count("<table>") == text.count("| --- |\n") and 'src="data:image/png;base64,' in page
    assert 'src="curves' not in page


def stored_samples(computed, folder, channels=1, size=4):
    """Returns a store with random samples of each cell of the first seed, and the samples by rate and steps."""
    store, rng, images = Store(folder), np.random.default_rng(0), {}
    for rate in RATES:
        for n in ("2", "4"):
            images[rate, n] = rng.integers(0, 256, (12, size, size, channels), np.uint8)
            cell = computed.cell({"rate": rate, "steps": n, "seed": computed.axes["seed"][0]})
            store.save(cell.key, {"estimates": {}}, images[rate, n])
    return store, images


def test_a_report_names_rows_columns_and_captions(outcome, tmp_path):
    computed = outcome(table(lambda rate, n, seed: n + seed))
    for result in computed._results.values():
        result["provenance"]["captions"] = ["two red circles", "a <b>blue</b> square"]
    store, _ = stored_samples(computed, tmp_path)
    scale = computed.experiment.scales["smoke"]
    path = report.write(tmp_path / "r", computed, "smoke", scale, store, "the command")
    text, page = path.read_text(), path.with_suffix(".html").read_text()
    assert "| rate ↓ steps → | 2 | 4 | paper: 2 | paper: 4 |" in text
    _, curves, samples = re.split("^## (?:Curves|Samples)$", text.split("## Provenance")[0], flags=re.M)
    assert "Horizontal axis: steps. Curves: rate. Error bars: standard deviation over 3 seeds." in curves
    assert "Columns: steps. Rows: rate. Each cell: the first 8 samples, from the same noise in all cells." in samples
    assert "1. two red circles\n2. a &lt;b&gt;blue&lt;/b&gt; square\n" in samples
    assert "<li>two red circles</li>" in page and "<h2>Samples</h2>" in page and page.count("<img") == 2
    assert "captions" not in text.split("## Provenance")[1]
    reread, _ = report.read(
        tmp_path / "r/results.json", computed.experiment, "smoke", computed._cells, computed.measures
    )
    report.write(tmp_path / "r", reread, "smoke", scale, None, "the command")
    assert path.read_text() == text


def test_curves_have_error_bars_over_several_seeds_only(outcome):
    for seeds, expected in (((0,), 0), ((0, 1, 2), 2)):
        figure = figures.curves_figure(outcome(table(lambda rate, n, seed: n + seed, seeds), sampling=0.5))
        assert sum(isinstance(part, ErrorbarContainer) for part in figure.axes[0].containers) == expected
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(RATES)


def test_values_in_one_column_have_no_curves(outcome, tmp_path):
    pending = table(lambda rate, n, seed: n + seed if n == 2 else None)
    assert figures.curves_figure(outcome(pending)) is None
    assert not figures.curves(tmp_path / "curves.png", outcome(table(lambda *_: 1.0), labels={"steps": ("2",)}))
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(("channels", "size", "scale"), [(1, 4, 16), (3, 30, 2), (4, 70, 1)])
def test_samples_of_cells_are_enlarged_by_a_whole_factor(outcome, tmp_path, channels, size, scale):
    """The image has the first eight samples of each cell, in the rows and columns of the table."""
    computed = outcome(table(lambda *_: 1.0, seeds=(0,)))
    store, images = stored_samples(computed, tmp_path, channels, size)
    assert figures.samples(tmp_path / "samples.png", computed, store)
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    places = {}
    for key, samples in images.items():
        for i in range(figures.SHOWN):
            enlarged = image_grids.to_rgb(samples)[i].repeat(scale, 0).repeat(scale, 1)
            height, width = enlarged.shape[:2]
            corners = np.argwhere((pixels[: 1 - height, : 1 - width] == enlarged[0, 0]).all(-1))
            at = [(y, x) for y, x in corners if (pixels[y : y + height, x : x + width] == enlarged).all()]
            assert len(at) == 1, (key, i)
            places[(*key, i)] = at[0]
    assert places["low", "2", 0][0] == places["low", "4", 0][0] < places["high", "2", 0][0]
    assert places["low", "2", 0][1] == places["high", "2", 0][1] < places["low", "4", 0][1]
    assert places["low", "2", 3][0] == places["low", "2", 0][0] < places["low", "2", 4][0]  # two rows of four


def test_samples_of_cells_that_are_missing_leave_a_gap(outcome, tmp_path):
    computed = outcome(table(lambda *_: 1.0, seeds=(0,)))
    assert not figures.samples(tmp_path / "samples.png", computed, Store(tmp_path))
    cell = computed.cell({"rate": "high", "steps": "4", "seed": "0"})
    store = Store(tmp_path)
    store.save(cell.key, {"estimates": {}}, np.full((3, 4, 4, 1), 255, np.uint8))
    assert figures.samples(tmp_path / "samples.png", computed, store)
    white = (np.asarray(Image.open(tmp_path / "samples.png")) == 255).all(-1)
    assert white.sum() == 3 * 64 * 64


def test_combinations_without_cells_are_no_settings_and_leave_a_gap(make, tmp_path):
    """The rate "middle" has no cells, and "high" none in 2 steps."""
    rates = {"low": {count: {"train.learning_rate": 1e-3} for count in ("2", "4")}, "middle": {}}
    rates["high"] = {"4": {"train.learning_rate": 2e-3}}
    experiment = make(axes=[steps(2, 4), Axis("rate", rates, by="steps")], papers=[])
    cells = [cell for unit in make_groups(experiment, experiment.scales["smoke"], {}) for cell in unit.cells]
    values = {cell.key: {"value": -cell.config.sampler.steps, "standard_error": 0.1} for cell in cells}
    results = {key: {"estimates": {"fd_pixels": value}} for key, value in values.items()}
    computed = Outcome(experiment, experiment.measures, cells, results)
    assert computed.total == computed.done == 3
    assert {line.name for line in computed.lines()} == {"low", "high"}
    verdict = computed.verdict(MORE_STEPS)
    assert (verdict.word, verdict.settings, verdict.held) == ("holds", 1, 1)
    assert computed.entry(computed.measures[0], {"steps": "2", "rate": "high"}).known == []
    store = Store(tmp_path)
    for cell in cells:
        store.save(cell.key, results[cell.key], np.zeros((3, 4, 4, 1), np.uint8))
    assert figures.samples(tmp_path / "samples.png", computed, store)


def test_columns_of_a_paper_without_values_for_these_cells_are_left_out(outcome, tmp_path):
    computed = outcome(
        table(lambda *_: 1.0), labels={"steps": ("2",)}, papers=[Paper("elsewhere", {("low", "4"): 3.5})]
    )
    scale = computed.experiment.scales["smoke"]
    text = report.write(tmp_path / "r", computed, "smoke", scale, Store(tmp_path), "the command").read_text()
    assert "The paper (elsewhere) has no values for these cells." in text and "paper: " not in text


def test_a_classifier_accuracy_has_that_of_real_images_beside_it(outcome, tmp_path):
    computed = outcome(table(lambda *_: 1.0, seeds=(0,)))
    computed.measures[0] = Measure("classifier_accuracy")
    for result in computed._results.values():
        result["provenance"]["reference"] = {"classifier_held_out_accuracy": 0.992}
    scale = computed.experiment.scales["smoke"]
    text = report.write(tmp_path / "r", computed, "smoke", scale, Store(tmp_path), "the command").read_text()
    assert "is better)\n\nThe classifier's accuracy on held-out real images: 0.992.\n" in text


def test_values_that_are_not_comparable_are_reported(outcome, tmp_path):
    computed = outcome(table(lambda *_: 1.0, seeds=(0,)))
    cell = computed.cell({"rate": "low", "steps": "2", "seed": "0"})
    computed._results[cell.key]["provenance"] = {"samples": 50_000}
    path = report.write(tmp_path / "r", computed, "smoke", computed.experiment.scales["smoke"], Store(tmp_path), "")
    assert "**Not all results are comparable**: they differ in samples." in path.read_text()


def test_a_report_is_written_again_from_its_results(outcome, tmp_path):
    values = table(lambda rate, n, seed: 10.0 - n + seed / 3)
    values["low", 2, 1], values["high", 4, 0] = "step 3: loss = nan", None
    computed = outcome(values, sampling=0.25, orderings=[Ordering(claim="more is better", order=MORE_STEPS.order)])
    arguments = "smoke", computed.experiment.scales["smoke"]
    path = report.write(tmp_path, computed, *arguments, Store(tmp_path), "the command")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    reread, command = report.read(
        tmp_path / "results.json", computed.experiment, "smoke", computed._cells, computed.measures
    )
    report.write(tmp_path, reread, *arguments, None, command)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    json.loads(before["results.json"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert path.exists()
    with pytest.raises(UserError, match=r"--scale=small: .* has results of scale smoke"):
        report.read(tmp_path / "results.json", computed.experiment, "small", computed._cells, computed.measures)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"provenance": {}, "seeds": 3}', "\udc80"])
def test_damaged_results_are_named(outcome, tmp_path, content):
    computed = outcome(table(lambda *_: 1.0))
    (tmp_path / "results.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"results\.json.*reproduce") as raised:
        report.read(tmp_path / "results.json", computed.experiment, "smoke", computed._cells, computed.measures)
    assert "\n" not in str(raised.value)


def test_text_of_results_is_escaped(outcome, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    hostile = f"<script>x</script> ![a]({secret}) \x1b[2J `</code>`\n\n# heading | cell"
    values = table(lambda *_: 1.0)
    values["low", 2, 1] = hostile
    computed = outcome(
        values, title=hostile, claim=hostile, orderings=[Ordering(claim=hostile, order=MORE_STEPS.order)]
    )
    store = Store(tmp_path)
    path = report.write(tmp_path / "r", computed, "smoke", computed.experiment.scales["smoke"], store, "the command")
    page = path.with_suffix(".html").read_text()
    assert "<script>" not in page and "c2VjcmV0" not in page  # "secret" in base 64
    assert page.count("<img") == 1  # the curves
    assert "\x1b" not in page + path.read_text() and "<h1>heading" not in page
    assert page.count("&lt;script&gt;") >= 4  # shown as text


def test_a_paper_names_its_measure():
    paper = Paper("bits", {("2",): 1.0}, metrics=("nll.bound",))
    assert paper.metrics == (Measure("nll", "bound").name,)
    assert Axis("steps", {"2": {"sampler.steps": 2}}) == steps(2)


@pytest.mark.parametrize("content", [b"", b'{"estimates": {', b'{"estimates": [1]}', b'{"error": 3}', b"null", b"\xff"])
def test_a_damaged_cell_is_named_and_measured_again(tmp_path, content, capsys):
    store = Store(tmp_path)
    store.save("abc", {"estimates": {"fid": {"value": 1.0, "standard_error": None}}})
    (tmp_path / "cells" / "abc.json").write_bytes(content)
    assert store.result("abc") is None and store.result("abc") is None
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "abc.json" in message and "measured again" in message


def test_damaged_samples_of_a_cell_are_named(tmp_path, capsys):
    store = Store(tmp_path)
    store.save("abc", {"estimates": {}}, np.zeros((2, 4, 4, 1), np.uint8))
    path = tmp_path / "cells" / "abc.npz"
    path.write_bytes(path.read_bytes()[:50])
    assert store.images("abc") is None
    assert "abc.npz is damaged" in capsys.readouterr().err
