"""Figures over seeds, orderings and failures, of results made by hand."""

import math

import pytest

from diffjax.experiment import Axis, Measure, Ordering, Paper, report, steps
from diffjax.experiment.outcome import Outcome
from diffjax.experiment.plan import make_units
from diffjax.experiment.store import Store

RATES = ("low", "high")


@pytest.fixture
def outcome(make):
    """The outcome of values by (rate, steps, seed): None is not done, text an error."""

    def made(values, better="lower", labels=None, **fields):
        seeds = sorted({key[2] for key in values})
        measure = Measure("fd_pixels", better=better)
        experiment = make({"seeds": seeds, "axes": labels or {}}, measures=[measure], **fields)
        cells = [cell for unit in make_units(experiment, experiment.scales["smoke"], {}) for cell in unit.cells]

        def result(cell):
            value = values.get((cell.labels["rate"], int(cell.labels["steps"]), int(cell.labels["seed"])))
            if value is None or isinstance(value, str):
                return value and {"error": value}
            return {"figures": {"fd_pixels": {"value": value}}, "provenance": {"samples": 12}, "seconds": 1.0}

        return Outcome(experiment, [measure], cells, {cell.key: result(cell) for cell in cells})

    return made


def table(function, seeds=(0, 1, 2)):
    return {(rate, n, seed): function(rate, n, seed) for rate in RATES for n in (2, 4) for seed in seeds}


MORE_STEPS = Ordering("", [{"steps": "4"}, {"steps": "2"}])


def test_figures_are_means_and_deviations_over_seeds(outcome):
    found = outcome(table(lambda rate, n, seed: n + seed))
    figure = found.figure(found.measures[0], {"rate": "low", "steps": "4"})
    assert figure.mean == 5 and figure.deviation == pytest.approx(1)
    assert math.isnan(
        outcome(table(lambda *_: 1.0, seeds=(0,))).figure(found.measures[0], {"rate": "low", "steps": "4"}).deviation
    )


def test_an_ordering_that_holds_everywhere(outcome):
    verdict = outcome(table(lambda rate, n, seed: 10.0 - n + 0.1 * seed)).verdict(MORE_STEPS)
    assert verdict.word == "holds"
    assert (verdict.settings, verdict.held, verdict.chains, verdict.agreed) == (2, 2, 6, 6)
    assert verdict.weakest == pytest.approx((2.0, 0.0), abs=1e-9)


def test_the_direction_of_the_measure_counts(outcome):
    values = table(lambda rate, n, seed: 10.0 - n)
    assert outcome(values, better="higher").verdict(MORE_STEPS).word == "does not hold"


def test_an_ordering_that_holds_on_average_names_the_seeds_that_disagree(outcome):
    gain = {0: 3.0, 1: 1.0, 2: -1.0}
    verdict = outcome(table(lambda rate, n, seed: 0.0 if n == 2 else -gain[seed])).verdict(MORE_STEPS)
    assert verdict.word == "holds" and (verdict.chains, verdict.agreed) == (6, 4)
    assert verdict.weakest == pytest.approx((1.0, 2 / math.sqrt(3)))  # s = 2 of three seeds
    assert "4 of 6 seeds agree" in verdict.text


def test_an_ordering_that_holds_in_one_setting_only(outcome):
    verdict = outcome(table(lambda rate, n, seed: n if rate == "low" else -n)).verdict(MORE_STEPS)
    assert verdict.word == "holds in part" and verdict.held == 1
    where = Ordering("", MORE_STEPS.order, where={"rate": ("high",)})
    assert outcome(table(lambda rate, n, seed: n if rate == "low" else -n)).verdict(where).word == "holds"


def test_a_tie_is_no_order(outcome):
    assert outcome(table(lambda *_: 1.0)).verdict(MORE_STEPS).word == "does not hold"


def test_cells_that_failed_or_are_not_done_are_left_out(outcome):
    values = table(lambda rate, n, seed: float(-n))
    values["low", 2, 1] = "step 3: loss = nan"
    values["high", 4, 2] = None
    found = outcome(values)
    assert (found.verdict(MORE_STEPS).chains, found.done) == (4, 11)
    assert found.errors == {"rate low, steps 2, seed 1": "step 3: loss = nan"}
    figure = found.figure(found.measures[0], {"rate": "low", "steps": "2"})
    assert (len(figure.values), figure.failed, figure.pending) == (2, 1, 0)
    nothing = outcome({key: None for key in values})
    assert nothing.verdict(MORE_STEPS).word == "not measured"


def test_the_share_of_runs_that_fail(outcome):
    values = table(lambda rate, n, seed: float(seed))
    values["low", 2, 0] = "not finite"
    found = outcome(values)
    share = found.failures(found.measures[0], {"rate": "low", "steps": "2"}, above=1.5)
    assert sorted(share.values) == [0, 1, 1]  # an error, 1, and 2 above 1.5


def test_a_report_is_whole_and_stands_alone(outcome, tmp_path):
    values = table(lambda rate, n, seed: 10.0 - n + seed)
    values["low", 2, 1] = "step 3: loss = nan | inf"
    found = outcome(values, orderings=[Ordering("more is better", MORE_STEPS.order)], fails_above=9.0)
    path = report.write(
        tmp_path / "r", found, "smoke", found.experiment.scales["smoke"], Store(tmp_path), "the command"
    )
    text = path.read_text()
    assert "| low | 9 ± 1.414 (1 failed) | 7 ± 1 | 3.5 | – |" in text  # ours, then the paper's
    assert "The paper's: elsewhere." in text
    assert "| more is better | **holds** (in order in 2 of 2 settings; 5 of 5 seeds agree; smallest step 2" in text
    assert "loss = nan \\| inf" in text
    assert "| low | 2 of 3 | 0 of 3 |" in text
    assert "    the command" in text
    page = path.with_suffix(".html").read_text()
    assert page.count("<table>") == text.count("| --- |\n") and 'src="data:image/png;base64,' in page
    assert 'src="curves' not in page


def test_no_columns_of_the_paper_where_it_has_no_figure_of_these_cells(outcome, tmp_path):
    found = outcome(table(lambda *_: 1.0), labels={"steps": ("2",)}, papers=[Paper("elsewhere", {("low", "4"): 3.5})])
    scale = found.experiment.scales["smoke"]
    text = report.write(tmp_path / "r", found, "smoke", scale, Store(tmp_path), "the command").read_text()
    assert "The paper (elsewhere) has no figure of these cells." in text and "paper: " not in text


def test_figures_that_are_not_comparable_are_said(outcome, tmp_path):
    found = outcome(table(lambda *_: 1.0, seeds=(0,)))
    cell = found.cell({"rate": "low", "steps": "2", "seed": "0"})
    found._results[cell.key]["provenance"] = {"samples": 50_000}
    path = report.write(tmp_path / "r", found, "smoke", found.experiment.scales["smoke"], Store(tmp_path), "")
    assert "**Not all of these are comparable**: they differ in samples." in path.read_text()


def test_papers_stand_beside_the_measure_they_name():
    paper = Paper("bits", {("2",): 1.0}, beside=("nll.bound",))
    assert paper.beside == (Measure("nll", "bound").name,)
    assert Axis("steps", {"2": {"sampler.steps": 2}}) == steps(2)
