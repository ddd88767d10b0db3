"""The demo's engine: samples of `launch.py sample` with the same flags, observed while they are sampled."""

import shlex
import threading

import numpy as np
import pytest
from PIL import Image

from diffjax.cli.sample import parse_flags
from diffjax.demo.engine import Engine, Stopped
from diffjax.errors import UserError
from diffjax.inference import image_grids
from tests.command_line import launch

DIGITS = {"num": 2, "label": 3, "seed": 5}


@pytest.fixture(scope="module")
def engine(trained_runs):
    """Two runs: a class-conditional diffusion model of 8x8 digits, and a GLIDE."""
    folder = {name: trained_runs(name) for name in ("pixel", "glide")}
    return Engine([str(path) for path in folder.values()], parse_flags)


@pytest.fixture(scope="module")
def digits(engine):
    return engine.names[0]


@pytest.fixture(scope="module")
def glide(engine):
    return engine.names[1]


def by_command(command, folder):
    """Returns the arrays of a command line of the engine."""
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "launch.py")
    assert launch(*arguments, f"--out={folder}/command.npz") == 0
    return dict(np.load(folder / "command.npz"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"sampler": "ddim", "steps": 3, "eta": 0.5, "guidance": 2.0},
        {"sampler": "dpmpp_2m", "steps": 7.0},
        {"sampler": "ancestral", "image": "test:7", "strength": 0.5},
    ],
    ids=lambda flags: flags["sampler"],
)
def test_observed_samples_have_the_pixels_of_their_command(engine, digits, flags, tmp_path):
    steps = []
    result = engine.sample(digits, DIGITS | flags, on_step=steps.append, previews=100)
    arrays = by_command(result.command, tmp_path)
    np.testing.assert_array_equal(result.images, arrays["images"])
    assert (result.seeds, result.labels) == ([5, 6], [3, 3])
    assert [step.index for step in steps] == list(range(1, steps[-1].total + 1))
    assert [step.images.shape for step in steps] == [(2, 8, 8, 1)] * len(steps)
    assert steps[-1].fraction == 1 and (np.diff([step.fraction for step in steps]) > 0).all()
    np.testing.assert_array_equal(steps[-1].images, result.images)  # the last step returns its x_0


@pytest.mark.slow
def test_observed_pipelines_have_the_pixels_of_their_command(engine, glide, tmp_path):
    steps = []
    flags = {"prompt": "a red circle", "num": 2, "steps": "base:3,upsampler:2", "guidance": "base:2"}
    flags["negative_prompt"] = "blue squares"
    result = engine.sample(glide, flags, on_step=steps.append)
    np.testing.assert_array_equal(result.images, by_command(result.command, tmp_path)["images"])
    result.save(tmp_path / "one.png", 0)
    assert engine.restore(tmp_path / "one.png")[1]["negative_prompt"] == "blue squares"
    assert [(step.stage, step.index, step.total) for step in steps] == [
        *(("base", i, 3) for i in (1, 2, 3)),
        *(("upsampler", i, 2) for i in (1, 2)),
    ]
    assert [step.fraction for step in steps] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert result.captions == ["a red circle"] * 2 and steps[0].images.shape[1:] != steps[-1].images.shape[1:]


def test_other_numbers_compile_nothing(engine, digits):
    flags = DIGITS | {"sampler": "ddim"}
    engine.sample(digits, flags)
    for change in (
        {"steps": 11},
        {"eta": 1},
        {"guidance": 3},
        {"eta": "hat"},
        {"seed": 9, "label": 1},
        {"grid": "leading"},
    ):
        assert engine.sample(digits, flags | change).compilations == 0, change


@pytest.mark.slow
def test_a_png_of_one_image_gives_the_same_pixels(engine, digits, tmp_path):
    flags = DIGITS | {"sampler": "ddim", "steps": 3}
    result = engine.sample(digits, flags)
    result.save(tmp_path / "one.png", 1)
    assert launch("sample", f"--from={tmp_path}/one.png", f"--out={tmp_path}/again.png") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), result.images[1, :, :, 0])
    name, restored = engine.restore(tmp_path / "one.png")
    np.testing.assert_array_equal(engine.sample(name, restored).images, result.images)


def test_a_png_from_elsewhere_names_no_file(engine, digits, tmp_path):
    engine.sample(digits, DIGITS).save(tmp_path / "grid.png")
    stored = image_grids.read_settings(tmp_path / "grid.png")
    (tmp_path / "secret.txt").write_text("secret")
    stored["flags"] |= {"prompts": f"{tmp_path}/secret.txt", "image": f"{tmp_path}/grid.png", "mask": "left"}
    image_grids.save(tmp_path / "edited.png", np.zeros((8, 8, 1), np.uint8), stored)
    restored = engine.restore(tmp_path / "edited.png")[1]
    assert {"prompts", "image"}.isdisjoint(restored) and restored["mask"] == "left"
    stored["flags"] = {"num": [1]}
    image_grids.save(tmp_path / "damaged.png", np.zeros((8, 8, 1), np.uint8), stored)
    with pytest.raises(UserError, match="settings are damaged"):
        engine.restore(tmp_path / "damaged.png")
    stored["flags"], stored["config"] = {"workdir": "runs/other"}, "0"
    image_grids.save(tmp_path / "other.png", np.zeros((8, 8, 1), np.uint8), stored)
    with pytest.raises(UserError, match="other: is not a run of this demo"):
        engine.restore(tmp_path / "other.png")


def test_a_trajectory_ends_in_the_image_and_follows_the_forward_process(engine, digits):
    trajectory = engine.trajectory(digits, DIGITS | {"sampler": "ddim", "steps": 5})
    np.testing.assert_array_equal(trajectory.x_0[-1], trajectory.result.images)
    assert trajectory.times[0] == 20 and (np.diff(trajectory.times) < 0).all() and len(trajectory.times) == 5
    np.testing.assert_allclose(trajectory.alphas**2 + trajectory.sigmas**2, 1, atol=1e-5)  # variance preserving
    assert trajectory.x_t.shape == trajectory.forward.shape == trajectory.eps.shape == (5, 2, 8, 8, 1)
    x_t, x_0, eps = (images.astype(float) / 127.5 - 1 for images in (trajectory.x_t, trajectory.x_0, trajectory.eps))
    sums = trajectory.alphas[:, None, None, None, None] * x_0 + trajectory.sigmas[:, None, None, None, None] * eps
    unclipped = (np.abs(x_t) < 1) & (np.abs(eps) < 1)
    assert np.abs(x_t - sums)[unclipped].max() < 0.02  # x_t = alpha x_0 + sigma eps
    distance = np.abs(trajectory.forward - trajectory.result.images.astype(float)).mean(axis=(1, 2, 3, 4))
    assert (np.diff(distance) < 0).all()


@pytest.mark.slow
def test_a_plot_has_the_samples_of_its_cells(engine, digits, tmp_path):
    cells = []
    flags = {"num": 2, "label": 1, "sampler": "ddim"}
    plot = engine.plot(
        digits, flags, ("steps", ["2", "4", "6"]), ("guidance", ["1", "3"]), on_cell=lambda *cell: cells.append(cell)
    )
    assert plot.images.shape == (2, 3, 2, 8, 8, 1) and plot.compilations <= 1
    assert cells == [(i, 6) for i in range(1, 7)]
    for row, column in ((0, 2), (1, 0)):
        arrays = by_command(plot.commands[row][column], tmp_path)
        np.testing.assert_array_equal(plot.images[row, column], arrays["images"])
    for axes, message in {
        (("steps", ()), None): "there are no values",
        (("steps", ("1",)), ("steps", ("2",))): "is the flag of both axes",
        (("steps", tuple(map(str, range(1, 200)))), None): "at most 100",
        (("steps", ("2", "many")), None): "--steps=many: must be whole numbers",
    }.items():
        with pytest.raises(UserError, match=message):
            engine.plot(digits, flags, *axes)


def test_errors_and_stops_leave_the_engine_usable(engine, digits):
    flags = DIGITS | {"sampler": "ddim"}
    expected = engine.sample(digits, flags).images
    stop = threading.Event()

    def stop_at_2(step):
        if step.index == 2:
            stop.set()

    with pytest.raises(Stopped):
        engine.sample(digits, flags | {"steps": 20}, on_step=stop_at_2, stop=stop, previews=20)
    with pytest.raises(Stopped):
        engine.sample(digits, flags, stop=stop)

    def fail(step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.sample(digits, flags, on_step=fail)
    for change, message in {
        ("steps", "0"): r"sampler.steps=0",
        ("label", 10): r"--label=10: must be from 0 to 9",
        ("stepz", 3): r"unknown flag 'stepz'",
        ("prompt", "a"): r"--prompt: requires a text-conditioned model",
        ("out", "x.png"): r"--out: is not supported in the demo",
        ("checkpoint", 3): r"3",
        ("seed", 2**32 - 1): r"must be",
    }.items():
        with pytest.raises(UserError, match=message):
            engine.sample(digits, flags | dict([change]))
    with pytest.raises(UserError, match="unknown run"):
        engine.sample("other", flags)
    np.testing.assert_array_equal(engine.sample(digits, flags).images, expected)


def test_samples_that_are_not_finite_are_noted(engine, digits):
    result = engine.sample(digits, DIGITS | {"sampler": "ddim", "guidance": 1e38, "threshold": "none"})
    assert any("not finite" in line for line in result.notes)
    assert engine.sample(digits, DIGITS | {"sampler": "ddim"}).notes == []


def test_requests_of_several_threads_do_not_mix(engine, digits):
    flags = [{"num": 2, "label": label, "seed": label, "sampler": "ddim"} for label in range(4)]
    expected = [engine.sample(digits, each).images for each in flags]
    images, previews = [None] * 4, [[] for _ in flags]

    def request(i):
        images[i] = engine.sample(digits, flags[i], on_step=previews[i].append).images

    threads = [threading.Thread(target=request, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(images[i], expected[i])
        np.testing.assert_array_equal(previews[i][-1].images, expected[i])


def test_capabilities(engine, digits, glide):
    run = engine.capabilities(digits)
    assert (run.system, run.classes, run.text, run.image_size, run.channels) == ("ddpm", 10, False, 8, 1)
    assert run.edits == {"image_to_image", "inpaint", "interpolate_seeds", "interpolate_images"}
    assert run.trajectory and not run.best_of and run.checkpoints[-1] == run.step == 4 and run.number is None
    assert (run.settings["steps"], run.settings["grid"]) == (4, "trailing") and not run.stages
    assert "dpmpp_2m" in run.choices["sampler"] and "karras" in run.choices["grid"]
    result = engine.sample(digits, DIGITS | {name: value for name, value in run.settings.items()})
    np.testing.assert_array_equal(result.images, engine.sample(digits, DIGITS).images)  # they are the defaults
    pipeline = engine.capabilities(glide)
    assert list(pipeline.stages) == ["base", "upsampler"] and pipeline.text and pipeline.image_size == 16
    assert pipeline.negative_prompt and not run.negative_prompt
    assert pipeline.num_parameters > 0 and pipeline.edits == {"image_to_image", "inpaint"}
    assert "clip_scale" in pipeline.stages["base"] and "augmentation" in pipeline.stages["upsampler"]
