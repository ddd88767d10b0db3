"""An engine without models, for tests of the page."""

import time

import numpy as np

from diffjax.demo.capabilities import Capabilities
from diffjax.demo.engine import PlotResult, Result, Step, Stopped, Trajectory
from diffjax.errors import UserError
from diffjax.inference import image_grids

DIFFUSION = Capabilities(
    name="digits",
    workdir="runs/digits",
    system="ddpm",
    num_parameters=123_456,
    step=1000,
    classes=10,
    class_names=tuple("0123456789"),
    text=False,
    negative_prompt=False,
    image_size=8,
    channels=1,
    settings={
        "sampler": "ddim",
        "steps": 50,
        "guidance": 1.5,
        "eta": 0.0,
        "grid": "trailing",
        "threshold": "clip",
        "guidance_rescale": 0.0,
    },
    stages={},
    choices={"sampler": ("ddim", "dpmpp_2m"), "grid": ("uniform", "trailing"), "threshold": ("clip", "dynamic")},
    edits=frozenset({"image_to_image", "inpaint", "interpolate_seeds", "interpolate_images"}),
    best_of=False,
    trajectory=True,
    checkpoints=(500, 1000),
    number=None,
)
PIPELINE = Capabilities(
    name="unclip",
    workdir="runs/unclip",
    system="unclip",
    num_parameters=2_000_000,
    step=0,
    classes=0,
    class_names=(),
    text=True,
    negative_prompt=True,
    image_size=16,
    channels=3,
    settings={"prior": "diffusion", "candidates": 2},
    stages={"prior": {"steps": 64, "guidance": 1.0}, "decoder": {"sampler": "ddim", "steps": 27, "guidance": 3.0}},
    choices={"prior": ("diffusion", "ar", "none"), "sampler": ("ddim", "dpmpp_2m")},
    edits=frozenset({"variations", "text_diff", "interpolate_images"}),
    best_of=True,
    trajectory=True,
    checkpoints=(),
    number=None,
)


class FakeEngine:
    """Images whose pixels are their seed; it records what it is called with."""

    def __init__(self, *capabilities, num_steps=4, seconds=0.0):
        self._capabilities = {c.name: c for c in capabilities or (DIFFUSION, PIPELINE)}
        self._num_steps, self._seconds = num_steps, seconds
        self.calls = []

    @property
    def names(self):
        return tuple(self._capabilities)

    def capabilities(self, name):
        return self._capabilities[name]

    def sample(self, name, flags, *, on_step=None, stop=None, previews=10):
        self.calls.append((name, dict(flags)))
        if flags.get("seed") == "666":
            raise UserError("--steps=0: must be a whole number from 1; set another")
        if flags.get("seed") == "667":
            raise ValueError("a bug")
        num, seed = int(flags["num"]), int(flags["seed"])
        images = self._images(name, np.arange(seed, seed + num))
        for i in range(self._num_steps):
            time.sleep(self._seconds / self._num_steps)
            if stop is not None and stop.is_set():
                raise Stopped
            if on_step:
                on_step(Step("", i + 1, self._num_steps, images, (i + 1) / self._num_steps))
        return self._result(name, flags, images, seed)

    def trajectory(self, name, flags, *, stop=None):
        self.calls.append((name, dict(flags)))
        count = 5
        images = np.stack([self._images(name, [20 * i]) for i in range(count)])
        levels = np.linspace(0, 1, count)
        result = self._result(name, flags, images[-1], int(flags["seed"]))
        arrays = {panel: images for panel in ("x_t", "x_0", "eps", "forward")}
        times = np.linspace(1000, 200, count)
        return Trajectory(stage="", times=times, alphas=levels, sigmas=1 - levels, result=result, **arrays)

    def plot(self, name, flags, x, y=None, *, on_cell=None, stop=None):
        self.calls.append((name, dict(flags), x, y))
        rows, columns = len(y[1]) if y else 1, len(x[1])
        images = self._images(name, np.arange(rows * columns)).reshape(
            rows, columns, 1, *self._images(name, [0]).shape[1:]
        )
        commands = [[f"launch.py sample --{x[0]}={value}" for value in x[1]] for _ in range(rows)]
        if on_cell:
            on_cell(1, rows * columns)
        grid = image_grids.grid(images.reshape(-1, *images.shape[3:]))
        return PlotResult(images, x, y, commands, grid, 1.0, 0, [])

    def restore(self, path):
        settings = image_grids.read_settings(path)
        return settings["run"], settings["flags"]

    def _images(self, name, seeds):
        c = self._capabilities[name]
        pixels = np.asarray(seeds, np.uint8)[:, None, None, None]
        return np.broadcast_to(pixels, (len(pixels), c.image_size, c.image_size, c.channels)).copy()

    def _result(self, name, flags, images, seed):
        num, text = len(images), self._capabilities[name].text
        settings = [{"run": name, "flags": dict(flags), "index": i} for i in range(num)]
        command = "python launch.py sample " + " ".join(f"--{k}={v}" for k, v in flags.items())
        return FakeResult(
            images=images,
            seeds=[seed + i for i in range(num)],
            captions=[flags.get("prompt", "")] * num,
            labels=[-1 if text else i % 10 for i in range(num)],
            scores=[0.25] * num if "best_of" in flags else None,
            grid=image_grids.grid(images),
            command=command,
            settings=settings,
            grid_settings={"run": name, "flags": dict(flags)},
            seconds=1.0,
            compilations=1,
            notes=["--guidance=1: has no effect"] if flags.get("guidance") == "1" else [],
        )


class FakeResult(Result):
    def save(self, path, index=None):
        image = self.grid if index is None else self.images[index]
        image_grids.save(path, image, self.grid_settings if index is None else self.settings[index])
