"""Every verb, as a user calls it, on a tiny config."""

import collections
import errno
import json
import re
import signal
import time

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax import cli, io
from diffjax.evaluation import figures
from diffjax.evaluation.samples import Measurer
from diffjax.inference.sampler_runner import Generator
from diffjax.runs.workdir import Workdir
from tests import tiny
from tests.running import process, steps, wait_for_step


def launch(*arguments: str) -> int:
    return cli.main(["launch.py", *map(str, arguments)])


def test_train_leaves_a_whole_workdir(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    assert {"seed", "system", "data", "model", "diffusion", "train", "sampler", "parallel", "dtype"} <= stored.keys()
    assert [line["step"] for line in steps(workdir)] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in steps(workdir))
    assert list((workdir / "events").glob("events.out.tfevents.*"))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    grid = Image.open(workdir / "samples" / "step_00000004.png")
    assert grid.size == (10 * 66 + 2, 66 + 2)  # ten classes in a row, enlarged eight times


def test_train_says_what_to_try_next(config, tmp_path, capsys):
    launch("train", f"--config={config}", f"--workdir={tmp_path}", "--config.train.steps=1")
    out = capsys.readouterr().out
    assert f"launch.py sample --workdir={tmp_path}" in out
    assert f"launch.py sweep --workdir={tmp_path}" in out


def test_sample_writes_a_grid(workdir, tmp_path):
    assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/new/s.png", "--num=20") == 0
    assert Image.open(tmp_path / "new" / "s.png").size == (10 * 66 + 2, 2 * 66 + 2)


def arrays(workdir, path, *flags):
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", *flags) == 0
    return np.load(path)


def test_sample_writes_arrays(workdir, tmp_path):
    found = arrays(workdir, tmp_path / "s.npz", "--num=12", "--seed=5", "--sampler=ancestral", "--steps=20")
    assert found["images"].shape == (12, 8, 8, 1)
    assert found["images"].dtype == np.uint8
    np.testing.assert_array_equal(found["labels"], np.arange(12) % 10)
    np.testing.assert_array_equal(found["seeds"], 5 + np.arange(12))


def test_a_sample_is_its_seeds_whatever_the_batch(workdir, tmp_path):
    flags = ["--label=3", "--eta=1", "--guidance=2"]
    whole = arrays(workdir, tmp_path / "a.npz", "--num=20", *flags)["images"]
    parts = arrays(workdir, tmp_path / "b.npz", "--num=20", "--batch_size=8", *flags)["images"]
    later = arrays(workdir, tmp_path / "c.npz", "--num=4", "--seed=16", *flags)["images"]
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert np.abs(whole[16:].astype(int) - later).max() <= 1


def test_sweep(workdir, capsys):
    flags = ["--steps=2,5,20", "--eta=0,1,hat", "--guidance=1,2", "--num=20"]
    assert launch("sweep", f"--workdir={workdir}", *flags) == 0
    results = json.loads((workdir / "results" / "sweep.json").read_text())
    assert results["compilations"] == 1
    assert len(results["cells"]) == 18
    assert {(c["steps"], c["eta"], c["sigma_hat"], c["guidance"]) for c in results["cells"]} == {
        (s, e, h, g) for s in (2, 5, 20) for e, h in ((0.0, False), (1.0, False), (1.0, True)) for g in (1.0, 2.0)
    }
    assert all(0 <= cell["recognised"] <= 1 and cell["fd_pixels"] > 0 for cell in results["cells"])
    for cell in results["cells"]:
        assert (cell["to_most_steps"] is None) == (cell["steps"] == 20)  # the reference itself
        errors = cell["standard_errors"]
        assert errors["fd_pixels"] > 0 and errors["recognised"] > 0
        assert (errors["to_most_steps"] is None) == (cell["steps"] == 20) and cell["not_finite"] == 0
    # The program compiles once, before the cell that is drawn first, which has the most steps.
    compiled = [cell for cell in results["cells"] if cell["compile_seconds"] > 0]
    assert [(cell["steps"], cell["eta"]) for cell in compiled] == [(20, 0.0)]
    assert results["compile_seconds"] == compiled[0]["compile_seconds"] > 0
    assert results["complete"] and results["git"] is not None and results["command"]
    assert results["reference"]["recogniser_held_out_accuracy"] > 0.9
    real = results["baselines"]["recognised"]["real"]
    assert real["value"] == results["reference"]["recogniser_held_out_accuracy"] and real["standard_error"] > 0
    (warning,) = results["warnings"]
    assert "20 samples of 64 features" in warning
    assert (workdir / "results" / "sweep.png").stat().st_size > 10_000
    out, err = capsys.readouterr()
    assert "1 compilation(s) of the sampler" in out and "recognised of real images: 0.9" in out
    assert err.count("20 samples of 64 features") == 1


def test_seconds_of_a_cell_leave_out_the_compilation(workdir, monkeypatch):
    """A compilation takes as long as it likes: here two seconds more."""
    compiling = Generator.compile

    def slowly(generator, *arguments):
        time.sleep(2)
        compiling(generator, *arguments)

    monkeypatch.setattr(Generator, "compile", slowly)
    assert launch("sweep", f"--workdir={workdir}", "--steps=1,2", "--num=8", "--metrics=fd_pixels") == 0
    first, second = sorted(cells(workdir), key=lambda cell: -cell["steps"])
    assert first["compile_seconds"] > 2 and second["compile_seconds"] == 0
    assert max(first["seconds"], second["seconds"]) < 2


class StopAfter:
    """A measure that stops the sweep at its n-th cell, by a signal of this process."""

    def __init__(self, monkeypatch, number, count):
        call, left = Measurer.__call__, iter(range(count))

        def counted(measurer, *given):
            if next(left, None) is None:
                signal.raise_signal(number)
            return call(measurer, *given)

        monkeypatch.setattr(Measurer, "__call__", counted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_keeps_its_cells(workdir, monkeypatch, capsys, number):
    before = signal.getsignal(signal.SIGTERM)
    StopAfter(monkeypatch, number, 2)
    flags = ["--steps=1,2,4", "--num=8", "--metrics=fd_pixels"]
    assert launch("sweep", f"--workdir={workdir}", *flags) == 128 + number
    results = io.from_json((workdir / "results" / "sweep.json").read_bytes())
    assert [cell["steps"] for cell in results["cells"]] == [2, 4] and results["complete"] is False
    out, err = capsys.readouterr()
    assert "stopped after 2 of 3 cells" in err and out.count("fd_pixels") == 2  # both tables
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_does_not_stop_a_sweep(workdir, monkeypatch, capsys):
    """Each cell is tried again with the next; what is on disk in between is the last whole file."""
    path, write, left = workdir / "results" / "sweep.json", io.write_json, iter(range(10))
    done = []

    def full(target, value, **given):
        done.append(len(value["cells"]))
        if next(left) in (1, 2):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        write(target, value, **given)

    monkeypatch.setattr(io, "write_json", full)
    flags = ["--steps=1,2,3,4", "--num=8", "--metrics=fd_pixels"]
    assert launch("sweep", f"--workdir={workdir}", *flags) == 0
    assert done == [1, 2, 3, 4] and len(cells(workdir)) == 4
    err = capsys.readouterr().err
    assert err.count(f"warning: {path} cannot be written (No space left on device)") == 2

    path.unlink()
    monkeypatch.setattr(io, "write_json", lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert launch("sweep", f"--workdir={workdir}", *flags) == 2
    out, err = capsys.readouterr()
    assert f"error: {path} cannot be written" in err.splitlines()[-1] and not path.exists()
    assert re.search(r"4 +\d.*±", out)  # a row of the table


def test_a_figure_that_fails_leaves_the_results(workdir, monkeypatch, capsys):
    monkeypatch.setattr(figures, "figure", lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert launch("sweep", f"--workdir={workdir}", "--steps=1,3", "--num=8", "--metrics=fd_pixels") == 2
    assert "fd_pixels" in capsys.readouterr().out and len(cells(workdir)) == 2


def cells(workdir) -> list[dict]:
    return json.loads((workdir / "results" / "sweep.json").read_text())["cells"]


@pytest.mark.slow
def test_sweep_over_samplers_compiles_each_once(workdir):
    """Options that a sampler does not take are left out for it, and cells that are then the same are drawn once."""
    flags = ["--sampler=ddim,ancestral,edm(churn=2),edm(churn=0)", "--eta=0,1", "--steps=2,4", "--grid=karras,leading"]
    assert launch("sweep", f"--workdir={workdir}", *flags, "--num=10") == 0
    assert json.loads((workdir / "results" / "sweep.json").read_text())["compilations"] == 3
    counted = collections.Counter(cell["name"] for cell in cells(workdir))
    assert counted == {"ddim": 8, "ancestral": 4, "edm(churn=2)": 4, "edm(churn=0)": 4}
    assert all(("eta" in cell) == (cell["name"] == "ddim") for cell in cells(workdir))


def test_sweep_over_grids_of_their_own_length(workdir):
    assert launch("sweep", f"--workdir={workdir}", "--grid=sections(3,2),times(20,10,5)", "--num=10") == 0
    assert [cell["steps"] for cell in cells(workdir)] == [5, 3]


def test_sweep_over_guidance(workdir, classifier, capsys):
    flags = ["--guidance=1,w1", "--guidance_high=1,inf", "--guidance_rescale=0.5", f"--classifier={classifier}"]
    more = ["--classifier_scale=0,2", f"--weak={workdir}", "--threshold=clip", "--num=8", "--steps=2"]
    assert launch("sweep", f"--workdir={workdir}", *flags, *more) == 0
    results = json.loads((workdir / "results" / "sweep.json").read_text())
    assert results["compilations"] == 1
    assert results["guides"] == {"classifier": str(classifier), "weak": str(workdir)}
    assert {cell["guidance"] for cell in results["cells"]} == {1.0, 2.0}
    assert len(results["cells"]) == 8
    assert "classifier" in capsys.readouterr().out


def test_a_sweep_without_steps_takes_the_configs(workdir):
    assert launch("sweep", f"--workdir={workdir}", "--guidance=1,2", "--num=10") == 0
    cells = json.loads((workdir / "results" / "sweep.json").read_text())["cells"]
    assert [(cell["steps"], cell["guidance"]) for cell in cells] == [(4, 1.0), (4, 2.0)]


def test_a_classifier_guides(workdir, classifier, tmp_path):
    flags = ["--label=3", "--num=8", "--guidance=1"]
    plain = arrays(workdir, tmp_path / "a.npz", *flags)["images"]
    scaled = [
        arrays(workdir, tmp_path / "b.npz", *flags, f"--classifier={classifier}", f"--classifier_scale={scale}")[
            "images"
        ]
        for scale in (0, 30)
    ]
    assert np.abs(plain.astype(int) - scaled[0]).max() <= 1
    assert np.abs(plain.astype(int) - scaled[1]).max() > 5


@pytest.mark.slow
def test_a_classifier_guides_a_model_without_labels(classifier, tmp_path):
    config = tiny.write(tmp_path / "c.py", diffusion__class_conditional=False, sampler__guidance=1.0)
    launch("train", f"--config={config}", f"--workdir={tmp_path}/run", "--config.train.steps=1")
    found = arrays(tmp_path / "run", tmp_path / "s.npz", "--num=12", f"--classifier={classifier}")
    np.testing.assert_array_equal(found["labels"], np.arange(12) % 10)


@pytest.mark.slow
def test_guides_must_fit(workdir, classifier, config, tmp_path, capsys):
    launch(
        "train",
        f"--config={config}",
        f"--workdir={tmp_path}",
        "--config.train.steps=1",
        "--config.diffusion.timesteps=9",
    )
    sample = ["sample", f"--workdir={workdir}", f"--out={tmp_path}/s.png"]
    for flag, message in (
        (f"--weak={tmp_path}", "diffusion.timesteps=9 and the run 20"),
        (f"--classifier={workdir}", "is a run of system=ddpm"),
    ):
        assert launch(*sample, flag) == 2
        assert message in capsys.readouterr().err
    assert launch("sample", f"--workdir={classifier}", f"--out={tmp_path}/s.png") == 2
    assert "draws no samples" in capsys.readouterr().err


def test_painting_in_keeps_what_is_known(workdir, tmp_path):
    flags = ["--image=test:7", "--mask=right", "--num=3", "--repeats=2"]
    drawn = arrays(workdir, tmp_path / "s.npz", *flags)["images"]
    known = diffjax.data.open_source("digits", directory="", split="test", image_size=8, background="white")
    np.testing.assert_array_equal(drawn[:, :, :4], np.tile(known.__getitems__([7])[0]["image"][:, :4], (3, 1, 1, 1)))
    assert drawn[:, :, 4:].std(axis=0).max() > 0


def test_an_image_file_is_edited(workdir, tmp_path):
    Image.fromarray(np.tile(np.arange(0, 240, 30, dtype=np.uint8), (8, 1))).save(tmp_path / "i.png")
    flags = [f"--image={tmp_path}/i.png", "--num=4", "--steps=20"]
    near, far = (arrays(workdir, tmp_path / "s.npz", *flags, f"--strength={s}")["images"] for s in (0.05, 1.0))
    image = np.asarray(Image.open(tmp_path / "i.png"))[None, ..., None].astype(int)
    assert np.abs(near - image).mean() < 25 < np.abs(far - image).mean()


@pytest.mark.slow
def test_interpolation_begins_and_ends_with_its_ends(workdir, tmp_path):
    seeds = arrays(workdir, tmp_path / "a.npz", "--num=3", "--label=1")["images"].astype(int)
    rows = arrays(workdir, tmp_path / "b.npz", "--num=2", "--label=1", "--interpolate=5")["images"].astype(int)
    assert rows.shape == (10, 8, 8, 1)
    for row in range(2):
        assert np.abs(rows[5 * row] - seeds[row]).max() <= 1
        assert np.abs(rows[5 * row + 4] - seeds[row + 1]).max() <= 1
    assert (
        launch("sample", f"--workdir={workdir}", "--image=test:1,test:2", "--interpolate=4", f"--out={tmp_path}/s.png")
        == 0
    )
    assert Image.open(tmp_path / "s.png").size == (4 * 66 + 2, 66 + 2)


@pytest.mark.slow
def test_evaluate_likelihood(workdir, capsys):
    flags = ["--metrics=nll", "--num=12", "--batch_size=8", "--ode_steps=4", "--exact_trace=2"]
    assert launch("evaluate", f"--workdir={workdir}", *flags) == 0
    found = json.loads((workdir / "results" / "nll.json").read_text())
    parts = sum(found[name]["mean"] for name in ("prior", "kl", "decoder"))
    assert found["bound"]["mean"] == pytest.approx(parts)
    assert found["terms"]["t"] == list(range(20, 0, -1))
    assert sum(found["terms"]["bits_per_dim"]) + found["prior"]["mean"] == pytest.approx(
        found["bound"]["mean"], rel=1e-4
    )
    assert all(found[name]["standard_error"] > 0 for name in ("bound", "ode_hutchinson", "ode_exact_trace"))
    assert (workdir / "results" / "nll.png").stat().st_size > 5_000
    assert "variational bound over 20 steps" in capsys.readouterr().out
    assert found["decoder_convention"] == "exact"
    # Of some of the terms: an estimate of the same sum, and the largest of them, the decoder's, is always there.
    assert launch("evaluate", f"--workdir={workdir}", *flags[:-1], "--terms=5", "--exact_trace=0") == 0
    some = json.loads((workdir / "results" / "nll.json").read_text())
    assert some["decoder"] == pytest.approx(found["decoder"])
    assert len(some["terms"]["t"]) < 20
    assert launch("evaluate", f"--workdir={workdir}", *flags[:-1], "--exact_trace=0", "--decoder=ddpm") == 0
    published = json.loads((workdir / "results" / "nll.json").read_text())
    assert published["decoder_convention"] == "ddpm"
    assert published["decoder"] != found["decoder"]
    assert published["kl"] == pytest.approx(found["kl"])
    assert launch("evaluate", f"--workdir={workdir}", *flags, "--decoder=exakt") == 2
    assert "did you mean 'exact'" in capsys.readouterr().err


def test_evaluate_reconstruction(workdir):
    flags = ["--metrics=reconstruction", "--num=6", "--steps=5,20"]
    assert launch("evaluate", f"--workdir={workdir}", *flags) == 0
    rows = json.loads((workdir / "results" / "reconstruction.json").read_text())["rows"]
    assert [row["steps"] for row in rows] == [5, 20]
    assert rows[1]["mse"]["mean"] < rows[0]["mse"]["mean"]
    assert Image.open(workdir / "results" / "reconstruction.png").size == (6 * 66 + 2, 3 * 66 + 2)


def test_evaluate_samples(workdir, capsys):
    flags = ["--metrics=fd_pixels,recognised", "--num=40", "--steps=3", "--sampler=ddim(eta=0.5)"]
    assert launch("evaluate", f"--workdir={workdir}", *flags) == 0
    said = capsys.readouterr()
    assert "against 1437 images of digits:train" in said.out
    assert said.err.count("40 samples of 64 features") == 1
    assert re.search(r"recognised +\d.*±.*real images 0\.9.*±.*chance 0\.1", said.out)
    found = json.loads((workdir / "results" / "fd_pixels.json").read_text())
    assert "40 samples of 64 features" in found["warnings"][0] and found["not_finite"] == 0 and found["git"]
    assert found["figures"]["fd_pixels"]["value"] > found["figures"]["fd_pixels_infinity"]["value"]
    assert found["figures"]["fd_pixels"]["standard_error"] > 0
    assert found["sampler"]["steps"] == 3 and found["sampler"]["name"] == "ddim(eta=0.5)"
    assert (found["samples"], found["checkpoint"], found["seed"], found["ema_decay"]) == (40, 4, 0, 0.995)
    assert found["reference"]["images"] == 1437 and found["versions"]["jax"]
    recognised = json.loads((workdir / "results" / "recognised.json").read_text())["figures"]["recognised"]
    assert recognised["standard_error"] > 0 and recognised["real"]["value"] > 0.9 and recognised["chance"] == 0.1
    assert Image.open(workdir / "results" / "samples.png").size == (10 * 66 + 2, 4 * 66 + 2)


def test_evaluate_a_classifier(classifier, workdir, capsys):
    assert launch("evaluate", f"--workdir={classifier}", "--metrics=accuracy", "--num=50") == 0
    rows = json.loads((classifier / "results" / "accuracy.json").read_text())["rows"]
    assert rows[0]["t"] == 1
    assert rows[-1]["t"] == 20
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in rows)
    for path, metric in ((classifier, "nll"), (workdir, "accuracy")):
        assert launch("evaluate", f"--workdir={path}", f"--metrics={metric}") == 2
        assert "is a run of system=" in capsys.readouterr().err


@pytest.mark.slow
def test_another_data_set_is_one_override_away(config, tmp_path):
    flags = ["--config.data.name=shapes", "--config.data.image_size=16", "--config.model.attention_resolutions=(8,)"]
    assert launch("train", f"--config={config}", f"--workdir={tmp_path}", "--config.train.steps=1", *flags) == 0
    assert arrays(tmp_path, tmp_path / "s.npz", "--num=3", "--label=4")["images"].shape == (3, 16, 16, 3)


def test_benchmark(config, tmp_path, capsys):
    assert launch("benchmark", f"--config={config}", "--steps=3", "--samples=10", f"--out={tmp_path}/b.json") == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    for name in ("compile_seconds", "step_seconds", "images_per_second", "gflop_per_step", "samples_per_second"):
        assert figures[name] > 0
    assert figures["images_per_second"] == pytest.approx(16 / figures["step_seconds"])
    assert {"command", "git", "date", "device", "versions"} <= set(figures)
    assert "step seconds" in capsys.readouterr().out


def test_load_opens_a_run_for_library_users(workdir):
    run = diffjax.load(workdir)
    assert (run.step, run.system.classes, run.spec.size) == (4, 10, 8)
    assert diffjax.load(workdir, step=2).step == 2


def test_continuing_gives_the_same_run(config, tmp_path):
    """Stopped after two steps and continued, or never stopped: the same losses to the last bit, the same samples."""
    whole, halves, constant = tmp_path / "whole", tmp_path / "halves", "--config.train.schedule=constant"
    launch("train", f"--config={config}", f"--workdir={whole}", constant)
    launch("train", f"--config={config}", f"--workdir={halves}", constant, "--config.train.steps=2")
    assert launch("train", f"--workdir={halves}", "--config.train.steps=4") == 0  # the stored config, no --config
    assert steps(halves) == steps(whole)
    assert (halves / "samples/step_00000004.png").read_bytes() == (whole / "samples/step_00000004.png").read_bytes()


def test_a_trained_run_is_not_trained_again(workdir, config, capsys):
    assert launch("train", f"--config={config}", f"--workdir={workdir}") == 0
    assert "raise --config.train.steps" in capsys.readouterr().out


def test_another_config_is_refused_and_named(config, tmp_path, capsys):
    flags = ["train", f"--config={config}", f"--workdir={tmp_path}", "--config.train.schedule=constant"]
    assert launch(*flags, "--config.train.steps=2") == 0
    changed = [
        "--config.train.learning_rate=0.5",
        "--config.seed=1",
        "--config.train.steps=3",
        "--config.train.log_every=2",
    ]
    assert launch(*flags, *changed) == 2
    error = capsys.readouterr().err
    assert "seed was 0, now 1; train.learning_rate was 0.001, now 0.5" in error
    assert "train.steps" not in error
    assert "log_every" not in error
    assert launch(*flags, *changed, "--allow_config_change") == 0
    assert Workdir(tmp_path).read_config().train.learning_rate == 0.5


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_good_checkpoint(config, tmp_path, capsys):
    flags = ["--config.train.learning_rate=1e30", "--config.train.clip_norm=0", "--config.train.checkpoint_every=1"]
    assert launch("train", f"--config={config}", f"--workdir={tmp_path}", *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: step \d: .* = (nan|inf).*the last good checkpoint is that of step \d", error)
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(kept) < int(re.search(r"step (\d)", error).group(1))
    assert diffjax.load(tmp_path).step == max(kept)


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_losses(config, tmp_path):
    """SIGKILL in the middle, then the same command; against a run that is never killed, in a process of its own too."""
    long = ["--config.train.steps=120", "--config.train.checkpoint_every=20", "--config.train.sample_count=1"]
    running = process(config, tmp_path / "killed", *long)
    wait_for_step(tmp_path / "killed", 50, running)
    running.kill()
    running.wait()
    assert len(steps(tmp_path / "killed")) < 120
    again, whole = process(config, tmp_path / "killed", *long), process(config, tmp_path / "whole", *long)
    assert "continuing at step" in again.communicate()[0]
    whole.communicate()
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole")
    assert [line["step"] for line in steps(tmp_path / "whole")] == list(range(1, 121))


def test_sigterm_saves_and_says_so(config, tmp_path):
    running = process(config, tmp_path, "--config.train.steps=100000", "--config.train.checkpoint_every=0")
    wait_for_step(tmp_path, 3, running)
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in output
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == [steps(tmp_path)[-1]["step"]]
