"""Sampling of runs for the web demo: the samples of `launch.py sample` with the same flags, one request at a time."""

import collections
import contextlib
import dataclasses
import math
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffjax import io
from diffjax.demo.capabilities import EDITS, Capabilities, capabilities_of, image_stages
from diffjax.errors import UserError, collected_messages, unknown
from diffjax.inference import edits, image_grids
from diffjax.inference.image_grids import Grid, Layout
from diffjax.inference.sample_flags import SampleFlags
from diffjax.inference.sample_requests import PATHS, Request, RunSampler, Samples, check_files
from diffjax.inference.sampler_runner import Listener
from diffjax.models.observation import ObservedStep, Progress
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.runs.config_files import to_json
from diffjax.runs.loading import load
from diffjax.runs.workdir import Workdir

__all__ = ["EDITS", "Capabilities", "Engine", "PlotResult", "Result", "Step", "Stopped", "Trajectory"]

MAX_TRAJECTORY = 16  # images of a trajectory
MAX_BYTES = 2**30  # size of a trajectory
MAX_CELLS = 100  # cells of a plot
_CAPACITIES = (250, 1000)  # numbers of steps that time grids are padded to, so that fewer steps compile nothing
_BYTES_PER_PIXEL = 12  # and step of a trajectory: two floats, and four grey levels
_MAX_LOADED = 4  # runs with their guidance models that stay in memory
_OF_ENGINE = ("workdir", "out", "from")  # flags that a request does not set
# flags that select what is loaded
_OF_MODELS = ("checkpoint", "ema_length", "data_dir", "weights_dtype", "codec", "classifier", "weak")
_PATIENCE = 0.1  # seconds between looks at `stop` while another request runs

Parse = Callable[[Sequence[str]], Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """Progress of a request.

    Attributes:
      stage: pipeline stage that is sampled; "" for other models.
      index: sampler step of the stage, from 1; for models without steps, number of images that are finished.
      total: number of steps of the stage; or of images.
      images: x_0 estimates of the images of the batch, uint8 [n, H, W, C]; n = 0 for stages without images.
      fraction: finished fraction of the request, 0 to 1, with all batches and stages.
    """

    stage: str
    index: int
    total: int
    images: UInt8[np.ndarray, "n H W C"]
    fraction: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Images of a request.

    Attributes:
      images: uint8 [N, H, W, C] in [0, 255].
      seeds: seed of each image.
      captions: prompt of each image; "" for runs that are not text-conditioned.
      labels: class of each image; -1 for runs without classes.
      scores: CLIP similarity of each image, with best_of; else None.
      grid: the images as `launch.py sample` arranges them.
      command: command line that samples the same pixels.
      settings: settings of each image, which its PNG stores.
      grid_settings: settings that the PNG of the grid stores.
      seconds: duration, without waiting for other requests.
      compilations: number of samplers that were compiled.
      notes: one line for each flag that has no effect or is replaced, and each warning.
    """

    images: UInt8[np.ndarray, "N H W C"]
    seeds: list[int]
    captions: list[str]
    labels: list[int]
    scores: list[float] | None
    grid: Grid
    command: str
    settings: list[dict[str, Any]]
    grid_settings: dict[str, Any]
    seconds: float
    compilations: int
    notes: list[str]

    def save(self, path: Path, index: int | None = None) -> None:
        """Writes an image, or the grid if `index` is None, as a PNG with its settings."""
        if index is None:
            image_grids.save(path, self.grid, self.grid_settings)
        else:
            image_grids.save(path, self.images[index], self.settings[index])


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Every step of the samples of a request, for K steps and n images, decoded to images.

    Attributes:
      stage: pipeline stage; "" for other models.
      times: t in [0, T], before each step.
      alphas, sigmas: noise levels, q(x_t | x_0) = N(alpha x_0, sigma² I).
      x_t: noised images, divided by the standard deviation of noised data of unit variance.
      x_0: estimates of the image.
      eps: estimates of the noise.
      forward: samples q(x_t | x_0) of the forward process from the last x_0, with one fixed noise, on the scale of x_t.
      result: the images.
    """

    stage: str
    times: Float[np.ndarray, " K"]
    alphas: Float[np.ndarray, " K"]
    sigmas: Float[np.ndarray, " K"]
    x_t: UInt8[np.ndarray, "K n H W C"]
    x_0: UInt8[np.ndarray, "K n H W C"]
    eps: UInt8[np.ndarray, "K n H W C"]
    forward: UInt8[np.ndarray, "K n H W C"]
    result: Result


@dataclasses.dataclass(frozen=True)
class PlotResult:
    """Samples of the same seeds over a grid of two settings.

    Attributes:
      images: uint8, n images per cell.
      x, y: flag and values of the columns and of the rows; y is None with one row.
      commands: command line of each cell, [Y][X].
      grid: the cells with the values as labels; images of a cell are side by side.
      seconds: duration, without waiting for other requests.
      compilations: number of samplers that were compiled.
      notes: one line for each flag that has no effect or is replaced, and each warning.
    """

    images: UInt8[np.ndarray, "Y X n H W C"]
    x: tuple[str, Sequence[str]]
    y: tuple[str, Sequence[str]] | None
    commands: list[list[str]]
    grid: Grid
    seconds: float
    compilations: int
    notes: list[str]


class Stopped(Exception):
    """The `stop` event of a request was set."""


class Engine:
    """Samples runs for several clients, one request at a time.

    Thread-safe: a request waits until the former has ended. A request that fails does not affect the next.
    """

    def __init__(self, workdirs: Sequence[str], parse: Parse):
        """Reads the configs of runs; each is loaded at its first request.

        Args:
          workdirs: folders of runs.
          parse: parses flags of `launch.py sample`, "--name=value" each, and raises UserError for invalid ones:
            `diffjax.cli.sample.parse_flags`.

        Raises:
          UserError: a folder is not a run.
        """
        self._parse = parse
        self._configs = {workdir: Workdir(workdir).read_config() for workdir in workdirs}
        counts = collections.Counter(Path(workdir).name for workdir in self._configs)
        self._workdirs = {w if counts[Path(w).name] > 1 else Path(w).name: w for w in self._configs}
        self._lock = threading.Lock()
        self._samplers: collections.OrderedDict[tuple, RunSampler] = collections.OrderedDict()
        self._capabilities: dict[str, Capabilities] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the runs: their folders' names, or whole paths where two have the same name."""
        return tuple(self._workdirs)

    def capabilities(self, name: str) -> Capabilities:
        """Returns the capabilities of a run. Loads the run at the first call.

        Raises:
          UserError: an unknown name, or a run that cannot be loaded or does not sample images.
        """
        if name not in self._capabilities:
            flags = self._flags(name, {})
            with self._locked(None):
                self._capabilities[name] = capabilities_of(name, self._sampler(flags))
        return self._capabilities[name]

    def sample(
        self,
        name: str,
        flags: Mapping[str, Any],
        *,
        on_step: Callable[[Step], None] | None = None,
        stop: threading.Event | None = None,
        previews: int = 10,
    ) -> Result:
        """Samples images: those of `launch.py sample` with the same flags.

        Args:
          name: name of the run.
          flags: texts or numbers by name of a flag of `launch.py sample`, without "workdir", "out" and "from"; None
            or "": not set. True and False set a flag without a value, such as "invert".
          on_step: called with the progress in a thread of the sampler, which waits for it. An exception ends the
            request.
          stop: ends the request when it is set.
          previews: largest number of calls of `on_step` per stage and batch.

        Raises:
          UserError: flags that are invalid or that the run does not support.
          Stopped: `stop` was set.
        """
        parsed = self._flags(name, flags)
        with self._locked(stop):
            observer = _Previews(on_step, stop, previews)
            return self._result(parsed, self._command(name, flags), observer)

    def trajectory(self, name: str, flags: Mapping[str, Any], *, stop: threading.Event | None = None) -> Trajectory:
        """Samples images as `sample`, and returns every step of them; of a pipeline, the first stage of images.

        Args:
          name: name of the run.
          flags: as of `sample`; at most MAX_TRAJECTORY images.
          stop: ends the request when it is set.

        Raises:
          UserError: invalid flags, or a model without steps.
          Stopped: `stop` was set.
        """
        parsed = self._flags(name, flags)
        with self._locked(stop):
            sampler = self._sampler(parsed)
            stages = image_stages(sampler.model)
            if not stages:
                system = sampler.trained.config.system
                raise UserError(f"{name}: a trajectory requires a diffusion model (this run: system={system})")
            observer = _Recording(stages[0], stop)
            result = self._result(parsed, self._command(name, flags), observer)
            times, alphas, sigmas, x_t, x_0 = observer.steps()
            alpha, sigma = (level.reshape(-1, *[1] * (x_t.ndim - 1)) for level in (alphas, sigmas))  # [K, 1, ...]
            std = np.sqrt(alpha**2 + sigma**2)
            eps = np.random.default_rng(0).standard_normal(x_0.shape[1:])
            data = {
                "x_t": x_t / std,
                "x_0": x_0,
                "eps": (x_t - alpha * x_0) / sigma,
                "forward": (alpha * x_0[-1] + sigma * eps) / std,
            }
            images = {name: _decode(sampler, stages[0], values) for name, values in data.items()}
        return Trajectory(stages[0], times, alphas, sigmas, **images, result=result)

    def plot(
        self,
        name: str,
        flags: Mapping[str, Any],
        x: tuple[str, Sequence[str]],
        y: tuple[str, Sequence[str]] | None = None,
        *,
        on_cell: Callable[[int, int], None] | None = None,
        stop: threading.Event | None = None,
    ) -> PlotResult:
        """Samples the same seeds over a grid of two settings. Settings with equal shapes share one compilation.

        Args:
          name: name of the run.
          flags: as of `sample`; the flags of all cells.
          x: flag and values of the columns, such as ("steps", ["5", "10"]).
          y: flag and values of the rows; None: one row.
          on_cell: called after each cell with the number of finished cells and of all.
          stop: ends the request when it is set.

        Raises:
          UserError: flags that are invalid or that the run does not support, or more than MAX_CELLS cells.
          Stopped: `stop` was set.
        """
        rows, columns = (y[1] if y else [""]), x[1]
        _check_axes(x, y)
        cells = [{**flags, x[0]: right} | ({y[0]: left} if y else {}) for left in rows for right in columns]
        parsed = [self._flags(name, cell) for cell in cells]
        with self._locked(stop):
            results = []
            for cell, cell_flags in zip(cells, parsed, strict=True):
                results.append(self._result(cell_flags, self._command(name, cell), _Previews(None, stop, 0)))
                if on_cell:
                    on_cell(len(results), len(cells))
        images = np.stack([result.images for result in results])
        side_by_side = np.concatenate(list(images.swapaxes(0, 1)), axis=2)
        row_labels = [f"{y[0]}={value}" for value in rows] if y else ()
        layout = Layout(len(columns), row_labels, [f"{x[0]}={value}" for value in columns])
        commands = [result.command for result in results]
        return PlotResult(
            images=images.reshape(len(rows), len(columns), *images.shape[1:]),
            x=x,
            y=y,
            commands=[commands[i : i + len(columns)] for i in range(0, len(commands), len(columns))],
            grid=image_grids.grid(side_by_side, layout),
            seconds=sum(result.seconds for result in results),
            compilations=sum(result.compilations for result in results),
            notes=list(dict.fromkeys(note for result in results for note in result.notes)),
        )

    def restore(self, path: str | Path) -> tuple[str, dict[str, Any]]:
        """Returns the run and the flags that a PNG of `launch.py sample` or of `Result.save` stores.

        Flags of files are left out, since a PNG from elsewhere can name any file; images of the data set, such as
        test:7, are not.

        Raises:
          UserError: the file has no settings, or its run is not one of the engine's.
        """
        stored = image_grids.read_settings(Path(path))
        flags = stored.get("flags")
        if not isinstance(flags, dict) or not all(isinstance(v, str | int | float) for v in flags.values()):
            raise UserError(f"{Path(path).name}: its settings are damaged; choose another PNG of launch.py sample")
        name = self._name_of(str(flags.pop("workdir", "")), stored.get("config"))
        for flag in PATHS:
            is_image = flag in ("image", "initial_image", "mask")
            if flag in flags and not (is_image and not edits.is_file(flag, str(flags[flag]))):
                del flags[flag]
        self._flags(name, flags)
        return name, flags

    def _name_of(self, workdir: str, config_hash: str | None) -> str:
        """Returns the name of the run of a folder, or with a config, for a folder that was moved."""
        candidates = {
            name: path for name, path in self._workdirs.items() if _config_hash(self._configs[path]) == config_hash
        }
        for name, path in candidates.items():
            if Path(path).resolve() == Path(workdir).resolve():
                return name
        if not candidates:
            raise UserError(f"{Path(workdir).name}: is not a run of this demo; add it to --workdir")
        return next(iter(candidates))

    def _arguments(self, flags: Mapping[str, Any]) -> list[str]:
        """Returns flags as the arguments of a command line."""
        for name in _OF_ENGINE:
            if name in flags:
                raise UserError(f"--{name}: is not supported in the demo; remove it")
        return [f"--{name}={_text(value)}" for name, value in flags.items() if value not in (None, "")]

    def _command(self, name: str, flags: Mapping[str, Any]) -> str:
        workdir = f"--workdir={self._workdirs[name]}"
        return shlex.join(["python", "launch.py", "sample", workdir, *self._arguments(flags)])

    def _flags(self, name: str, flags: Mapping[str, Any]) -> SampleFlags:
        """Returns parsed flags. Raises UserError for an unknown run, or an invalid flag."""
        if name not in self._workdirs:
            raise unknown("run", name, self._workdirs)
        parsed = self._parse([f"--workdir={self._workdirs[name]}", *self._arguments(flags)])
        return SampleFlags(parsed.as_dict(), parsed.given_flags)

    @contextlib.contextmanager
    def _locked(self, stop: threading.Event | None) -> Iterator[None]:
        """Waits for other requests. Raises Stopped if the request is stopped before its turn."""
        while not self._lock.acquire(timeout=_PATIENCE):
            _check_stop(stop)
        try:
            _check_stop(stop)
            yield
        finally:
            self._lock.release()

    def _sampler(self, flags: SampleFlags) -> RunSampler:
        """Returns the sampler of a run with its guidance models; loads them unless they were used lately."""
        key = flags.workdir, *(flags.values.get(name) for name in _OF_MODELS)
        if key not in self._samplers:
            options = {"data_dir": flags.data_dir, "weights_dtype": flags.weights_dtype or "float32"}
            trained = load(flags.workdir, flags.checkpoint, ema_length=flags.ema_length, **options)
            self._samplers[key] = RunSampler(trained, flags.values)
        self._samplers.move_to_end(key)
        while len(self._samplers) > _MAX_LOADED:
            self._samplers.popitem(last=False)
        return self._samplers[key]

    def _result(self, flags: SampleFlags, command: str, observer: "_Observation") -> Result:
        """Samples images; the engine must be locked."""
        since = time.monotonic()
        with collected_messages() as notes:
            captions = check_files(flags)
            sampler = self._sampler(flags)
            compilations = sampler.compilations
            request = _prepare(sampler, flags, captions)
            observer.begin(sampler, request)
            samples = sampler.sample(request, progress=observer.finish_batch, listener=observer.listener)
        settings_of = sampler.recorder(request, samples.seeds, command)
        labels, shown_captions = _conditions(sampler, samples)
        return Result(
            images=samples.images,
            seeds=samples.seeds.tolist(),
            captions=shown_captions,
            labels=labels,
            scores=None if samples.scores is None else samples.scores.tolist(),
            grid=image_grids.grid(samples.images, samples.layout),
            command=command,
            settings=[settings_of(i) for i in range(len(samples.images))],
            grid_settings=settings_of(None),
            seconds=time.monotonic() - since,
            compilations=sampler.compilations - compilations,
            notes=notes,
        )


class _Observation:
    """Follows a request from batch to batch, and raises Stopped once it is stopped."""

    def __init__(self, stop: threading.Event | None):
        self._stop = stop
        self.listener = Listener(self._start, self._receive)
        self._total = self._finished = 0

    def begin(self, sampler: RunSampler, request: Request) -> None:
        """Called before the request is sampled."""
        self._total = request.total
        _check_stop(self._stop)

    def finish_batch(self, count: int) -> None:
        """Called after each batch with its number of images."""
        self._finished += count
        _check_stop(self._stop)

    def _start(self, progress: Progress) -> bool:
        """Called at the start of each step; returns whether `_receive` is called with its images."""
        _check_stop(self._stop)
        return False

    def _receive(self, step: ObservedStep) -> None:
        """Called with the images of a step."""

    def _in_request(self, examples: np.ndarray) -> np.ndarray:
        """Returns the examples [n, ...] of a batch [B, ...] without those that pad it."""
        return examples[: self._total - self._finished]


class _Previews(_Observation):
    """Calls `on_step` with the progress of a request."""

    def __init__(self, on_step: Callable[[Step], None] | None, stop: threading.Event | None, previews: int):
        super().__init__(stop)
        self._on_step, self._previews = on_step, previews
        self._stages: list[str] = []
        self._steps_per_batch, self._batches, self._steps_done = 0, 1, 0

    def begin(self, sampler: RunSampler, request: Request) -> None:
        super().begin(sampler, request)
        self._stages = image_stages(sampler.model)
        self._steps_per_batch = _num_loop_steps(request.settings)
        self._batches = math.ceil(request.total / request.batch_size)

    def finish_batch(self, count: int) -> None:
        super().finish_batch(count)
        self._steps_done = 0
        if self._on_step and not self._stages:  # a model whose steps are not observed
            no_images = np.zeros((0, 1, 1, 1), np.uint8)
            self._on_step(Step("", self._finished, self._total, no_images, self._finished / self._total))

    def _start(self, progress: Progress) -> bool:
        super()._start(progress)
        self._steps_done += 1
        is_due = self._on_step is not None and self._previews > 0
        is_due = is_due and progress.index % math.ceil(progress.total / self._previews) == 0
        if is_due and progress.stage not in self._stages:
            self._report(progress, np.zeros((0, 1, 1, 1), np.uint8))
        return is_due

    def _receive(self, step: ObservedStep) -> None:
        self._report(step.progress, self._in_request(step.images))

    def _report(self, progress: Progress, images: UInt8[np.ndarray, "n H W C"]) -> None:
        assert self._on_step is not None
        steps = self._steps_per_batch if progress.stage else progress.total  # image-to-image has fewer than the grid
        done = self._finished / self._total + min(self._steps_done / steps, 1.0) / self._batches
        self._on_step(Step(*progress, images, min(done, 1.0)))


class _Recording(_Observation):
    """Keeps every step of a stage."""

    def __init__(self, stage: str, stop: threading.Event | None):
        super().__init__(stop)
        self._stage = stage
        self._batches: list[list[ObservedStep]] = []

    def begin(self, sampler: RunSampler, request: Request) -> None:
        super().begin(sampler, request)
        if request.total > MAX_TRAJECTORY:
            raise UserError(
                f"--num={request.total}: a trajectory has at most {MAX_TRAJECTORY} images; lower --num or --best_of"
            )
        stages = request.settings.stages
        steps = (stages[self._stage] if stages else request.settings).num_steps
        size = _BYTES_PER_PIXEL * steps * request.total * sampler.model.output_size**2 * sampler.trained.spec.channels
        if size > MAX_BYTES:
            raise UserError(f"--steps={steps}: the trajectory has {size >> 20} MiB of images; lower --steps or --num")

    def _start(self, progress: Progress) -> bool:
        super()._start(progress)
        return progress.stage == self._stage

    def _receive(self, step: ObservedStep) -> None:
        if step.progress.index == 1:
            self._batches.append([])
        x_t, x_0 = map(self._in_request, (step.x_t, step.x_0))
        self._batches[-1].append(step._replace(x_t=x_t, x_0=x_0))

    def steps(self) -> tuple[np.ndarray, ...]:
        """Returns t, alpha and sigma [K], x_t and x_0 [K, n, ...]."""
        levels = (np.array([getattr(step, name) for step in self._batches[0]]) for name in ("t", "alpha", "sigma"))
        data = (
            np.concatenate([np.stack([getattr(step, name) for step in batch]) for batch in self._batches], axis=1)
            for name in ("x_t", "x_0")
        )
        return *levels, *data


def _check_stop(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped


def _check_axes(x: tuple[str, Sequence[str]], y: tuple[str, Sequence[str]] | None) -> None:
    """Raises UserError for axes without values, of one flag, or with too many cells."""
    for flag, values in [x, *([y] if y else [])]:
        if not values:
            raise UserError(f"--{flag}: there are no values; add at least one")
    if y and x[0] == y[0]:
        raise UserError(f"--{x[0]}: is the flag of both axes; choose another flag for one of them")
    cells = len(x[1]) * (len(y[1]) if y else 1)
    if cells > MAX_CELLS:
        raise UserError(f"the plot has {cells} cells: must be at most {MAX_CELLS}; remove values")


def _text(value: Any) -> str:
    """Returns the text of a flag's value. Whole numbers have no point, as sliders return floats."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _prepare(sampler: RunSampler, flags: SampleFlags, captions: Sequence[str]) -> Request:
    """Returns the samples to compute, with time grids of one length, so that other steps share the compilation."""
    for capacity in _CAPACITIES:
        request = sampler.prepare(flags, captions, capacity=capacity)
        parts = [request.settings, *request.settings.stages.values()]
        if all(part.times.size in (0, capacity + 1) for part in parts):
            break
    return request


def _num_loop_steps(settings: SamplingSettings) -> int:
    """Returns the number of steps of a batch, of all stages together; unCLIP's prior samples several embeddings."""
    candidates = dict(settings.choices).get("candidates", 1)
    steps = {name: stage.num_steps for name, stage in settings.stages.items()} or {"": settings.num_steps}
    return sum(count * (candidates if name == "prior" else 1) for name, count in steps.items())


def _conditions(sampler: RunSampler, samples: Samples) -> tuple[list[int], list[str]]:
    """Returns the label and the caption of each sample."""
    keep = max(len(samples.images) // samples.prompts.size, 1)
    labels = samples.prompts.conditions["label"] if sampler.model.classes else np.full(samples.prompts.size, -1)
    captions = samples.prompts.captions or [""] * samples.prompts.size
    return np.repeat(labels, keep).tolist(), [caption for caption in captions for _ in range(keep)]


def _decode(sampler: RunSampler, stage: str, x: Float[np.ndarray, "K n ..."]) -> UInt8[np.ndarray, "K n H W C"]:
    images = sampler.decode(stage, x.reshape(-1, *x.shape[2:]).astype(np.float32))
    return images.reshape(*x.shape[:2], *images.shape[1:])


def _config_hash(config: Any) -> str:
    return io.short_hash(to_json(config))
