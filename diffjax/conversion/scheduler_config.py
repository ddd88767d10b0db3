"""Configs of diffusers' schedulers, and the sections `diffusion` and `sampler` of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax.conversion.components import Json, with_defaults
from diffjax.diffusion import clipping, noise_schedules, time_grids
from diffjax.published.folders import refused, shown
from diffjax.registry import lookup

_DEFAULTS = {  # of the fields that are read, where classes agree
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "variance_type": "fixed_small",
    "original_inference_steps": 50,
}
_SAMPLERS = {  # by class of the scheduler: sampler, time grid, number of steps
    "DDPMScheduler": ("ancestral", "leading", 1000),
    "DDIMScheduler": ("ddim", "leading", 50),
    "PNDMScheduler": ("pndm", "leading", 50),
    "EulerDiscreteScheduler": ("euler", "linspace", 50),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace", 50),
    "HeunDiscreteScheduler": ("heun", "linspace", 25),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "linspace", 25),
    "UniPCMultistepScheduler": ("unipc", "linspace", 25),
    "UnCLIPScheduler": ("ancestral", "linspace", 25),
    "LMSDiscreteScheduler": ("lms", "linspace", 50),
    "KDPM2DiscreteScheduler": ("dpm2", "linspace", 25),
    "KDPM2AncestralDiscreteScheduler": ("dpm2_ancestral", "linspace", 25),
    "LCMScheduler": ("lcm", "trailing", 4),
    "DPMSolverSinglestepScheduler": ("dpm_solver(data=True)", "linspace", 13),
    "DEISMultistepScheduler": ("deis(order=2,log_rho=True)", "linspace", 25),
}
_SOLVERS = {  # of DPMSolverMultistepScheduler, by algorithm_type, solver_order and solver_type
    **{
        (algorithm, 1, kind): "ddim(eta=1)" if algorithm == "sde-dpmsolver++" else "ddim"
        for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver")
        for kind in ("midpoint", "heun")
    },
    ("dpmsolver++", 2, "midpoint"): "dpmpp_2m",
    ("dpmsolver++", 2, "heun"): "dpmpp_2m_sde(eta=0,heun=True)",
    ("dpmsolver++", 3, "heun"): "dpmpp_3m_sde(eta=0)",
    ("sde-dpmsolver++", 2, "midpoint"): "dpmpp_2m_sde",
    ("sde-dpmsolver++", 2, "heun"): "dpmpp_2m_sde(heun=True)",
    ("dpmsolver", 2, "midpoint"): "dpm_solver_multistep",
    ("dpmsolver", 2, "heun"): "dpm_solver_multistep(heun=True)",
    ("dpmsolver", 3, "midpoint"): "dpm_solver_multistep(order=3)",
    ("dpmsolver", 3, "heun"): "dpm_solver_multistep(order=3,heun=True)",
}
_OF_SIGMAS = (
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
_MULTISTEP = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
_EXACT_SPACINGS = {  # values of timestep_spacing with which our grid has their timesteps and targets
    **dict.fromkeys(("DDPMScheduler", "LCMScheduler"), ("leading", "linspace", "trailing")),  # the last ignores it
    **dict.fromkeys(("DDIMScheduler", "PNDMScheduler"), ("leading", "trailing")),
    **dict.fromkeys(_OF_SIGMAS, ("leading", "trailing")),  # their linspace is not of whole timesteps
    **dict.fromkeys(_MULTISTEP, ("trailing",)),
    "UnCLIPScheduler": ("linspace",),
}
_SIGMAS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "log_snr", "use_lu_lambdas": "log_snr"}  # grids
_EXACT_SIGMAS = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")  # others round timesteps
_OPTIONS: dict[str, tuple[Any, ...]] = {  # of samplers, which a sampler of ours does not read: the values that it has
    **dict.fromkeys(("use_beta_sigmas", "use_flow_sigmas", "euler_at_final"), (False,)),
    **dict.fromkeys(("predict_x0", "lower_order_final"), (True,)),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "disable_corrector": ([],),
}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
_UNCLIP_VARIANCES = {"fixed_small": "fixed_small_log", "learned_range": "learned_range"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_DEFAULT_BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (8.5e-4, 0.012)}


def read(path: Path, config: Json, *, learns_variance: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns fields of our sections `diffusion` and `sampler` for a scheduler.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.
      learns_variance: whether the network has twice the output channels.

    Raises:
      UserError: a class or a field that our schedules and samplers do not have.
    """
    name = config.get("_class_name")
    if name not in _SAMPLERS:
        raise refused(path, "_class_name", name, f"must be one of {', '.join(_SAMPLERS)}")
    clipping_classes = ("DDPMScheduler", "DDIMScheduler", "UnCLIPScheduler")
    defaults = {**_DEFAULTS, "clip_sample": name in clipping_classes}
    if name == "UnCLIPScheduler":
        defaults["beta_schedule"] = "squaredcos_cap_v2"
    defaults["set_alpha_to_one"] = name == "DDIMScheduler"
    c = {**with_defaults(path, config, defaults), "_class_name": name}
    for field, known in (
        ("beta_schedule", _SCHEDULES),
        ("prediction_type", _PREDICTIONS),
        ("variance_type", {**_VARIANCES, None: ""}),
    ):
        if c[field] not in known:
            raise refused(path, field, c[field], f"must be one of {', '.join(k for k in known if k)}")
    if name == "UnCLIPScheduler" and (c["variance_type"] == "learned_range") != learns_variance:
        channels = "twice the output channels" if learns_variance else "no outputs of a variance"
        raise refused(path, "variance_type", c["variance_type"], f"the network has {channels}")
    if c["trained_betas"] is not None:
        raise refused(path, "trained_betas", "...", "is not supported; only schedules by name are")
    _, spacing, steps = _SAMPLERS[name]
    sampler = _sampler(c)[0]
    diffusion = {
        "schedule": _schedule(c),
        "timesteps": c["num_train_timesteps"],
        "zero_terminal_snr": bool(c["rescale_betas_zero_snr"]),
        "parameterization": _PREDICTIONS[c["prediction_type"]],
        "variance": "learned_range" if learns_variance else _VARIANCES.get(c["variance_type"], "fixed_small"),
    }
    if diffusion["variance"] == "learned_range":
        diffusion["loss"] = "hybrid"
    grid, threshold = _grid(path, c, spacing), "none"
    if name == "LCMScheduler":
        grid = f"trailing(among={c['original_inference_steps']})"
    if c["thresholding"]:
        percentile = 100 * c["dynamic_thresholding_ratio"]
        threshold = f"dynamic(percentile={percentile:g},limit={c['sample_max_value']:g})"
    elif c["clip_sample"]:
        limit = c["clip_sample_range"]
        threshold = "clip" if limit == 1 else f"clip(limit={limit:g})"
    steps = min(steps, c["num_train_timesteps"])
    return diffusion, {"name": sampler, "grid": grid, "steps": steps, "threshold": threshold}


def differences(path: Path, config: Json) -> list[str]:
    """Returns a line for each thing in which the sampler of `read` is not that of a scheduler.

    Args:
      path: file of the config, for the lines.
      config: fields of the file, which `read` accepts.
    """
    name = config["_class_name"]
    sampler, replaced = _sampler(config)
    lines = []
    if replaced:
        lines.append(f"{replaced}={shown(config.get(replaced))}: is replaced by {sampler}, the nearest sampler")
    elif _ends_in_other_steps(config):
        lines.append(f"_class_name={shown(name)}: {sampler} bounds extrapolations, which matters in the last steps")
    spacing = config.get("timestep_spacing") or _SAMPLERS[name][1]
    exact = _EXACT_SPACINGS[name] + (("linspace",) if name in _MULTISTEP and _ends_noisy(config) else ())
    if levels := _spaced_sigmas(config):
        if name not in _EXACT_SIGMAS:
            lines.append(f"{levels}=true: the timesteps of {name} are approximated")
    elif spacing == "leading" and _ends_noisy(config) and not config.get("steps_offset"):
        lines.append(f"steps_offset=0: the last step of {name} ends at the first level, and is replaced by one to x_0")
    elif spacing not in exact and replaced != "_class_name":
        lines.append(f"timestep_spacing={shown(spacing)}: the timesteps of {name} are approximated")
    for field, values in _OPTIONS.items():
        if field in ("euler_at_final", "lower_order_final") and _ends_in_first_order(config):
            continue
        if config.get(field) is not None and config[field] not in values:
            lines.append(f"{field}={shown(config[field])}: is not imported")
    return [f"{path}: {line}; --sampler and --grid choose others" for line in lines]


def _sampler(c: Json) -> tuple[str, str | None]:
    """Returns sampler.name for a scheduler, and the field for which it is only the nearest sampler, if any."""
    name, algorithm, kind = c["_class_name"], c.get("algorithm_type"), c.get("solver_type")
    nearest, order = _SAMPLERS[name][0], c.get("solver_order") or 2
    if name == "PNDMScheduler" and c.get("skip_prk_steps", False):
        return "plms", None
    if name == "DDIMScheduler" and (c.get("clip_sample", True) or c.get("thresholding", False)):
        return "ddim(unclipped_eps=True)", None  # as pipelines call it, without use_clipped_model_output
    if name in _MULTISTEP and not (isinstance(order, int) and 1 <= order <= 3):
        return nearest, "solver_order"
    if name == "DPMSolverMultistepScheduler":  # which replaces names of other solvers by its own
        algorithm = algorithm if algorithm in ("dpmsolver", "sde-dpmsolver++") else "dpmsolver++"
        kind = "heun" if kind == "heun" else "midpoint"
        sampler = _SOLVERS.get((algorithm, order, kind))
        return sampler or _SOLVERS[algorithm, 2, kind], None if sampler else "solver_order"
    if name == "UniPCMultistepScheduler":
        options = [f"order={order}"] * (order != 2) + ["bh1=True"] * (kind == "bh1")
        sampler = nearest + (f"({','.join(options)})" if options else "")
        return sampler, "solver_order" if order == 3 else None  # the order of their last steps is lower
    if name == "DEISMultistepScheduler":
        return f"deis(order={order},log_rho=True)", None
    if name == "DPMSolverSinglestepScheduler":  # their steps are stages of ours
        noise = ",eta=1" if algorithm == "sde-dpmsolver++" else ""
        return f"dpm_solver(order={order},data={algorithm != 'dpmsolver'}{noise})", "_class_name"
    return nearest, None


def _ends_in_other_steps(c: Json) -> bool:
    """Returns whether the last steps of a scheduler are longer extrapolations than those of the sampler."""
    name, order = c["_class_name"], c.get("solver_order") or 2
    if name not in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler") or order == 1:
        return False
    return _ends_noisy(c) or (name == "DPMSolverMultistepScheduler" and c.get("solver_type") == "heun")


def _ends_in_first_order(c: Json) -> bool:
    """Returns whether the order of the last steps of a scheduler is the same for all options that lower it."""
    order = c.get("solver_order") or 2
    return c["_class_name"] == "DPMSolverMultistepScheduler" and (order == 1 or (order == 2 and not _ends_noisy(c)))


def _spaced_sigmas(c: Json) -> str | None:
    """Returns the field of a scheduler that spaces its levels in sigma, if it is set and the class has it."""
    if c["_class_name"] not in (*_OF_SIGMAS, *_MULTISTEP) or c["_class_name"] == "EulerAncestralDiscreteScheduler":
        return None
    return next((field for field in _SIGMAS if c.get(field)), None)


def _ends_noisy(c: Json) -> bool:
    """Returns whether the last step of a scheduler ends at the first level instead of the clean image."""
    name = c["_class_name"]
    if name in ("DDIMScheduler", "PNDMScheduler"):
        return not c.get("set_alpha_to_one", name == "DDIMScheduler")
    return name == "DEISMultistepScheduler" or (name in _MULTISTEP and c.get("final_sigmas_type") == "sigma_min")


def _grid(path: Path, c: Json, spacing: str) -> str:
    """Returns sampler.grid; `spacing` is the timestep_spacing of the scheduler's class."""
    name, spacing = c["_class_name"], c.get("timestep_spacing") or spacing
    if spacing not in ("leading", "linspace", "trailing"):
        raise refused(path, "timestep_spacing", spacing, "must be leading, linspace or trailing")
    ends_noisy = _ends_noisy(c)
    options: dict[str, Any] = {}
    if levels := _spaced_sigmas(c):
        grid = _SIGMAS[levels]
        if name in _EXACT_SIGMAS:
            options["fractional"] = True
    elif spacing == "leading":
        grid = spacing
        if c["steps_offset"]:
            options["offset"] = c["steps_offset"]
        options["whole_strides"] = True
    elif spacing == "linspace" and name in _MULTISTEP and not ends_noisy:
        grid = "trailing"  # their linspace is of n + 1 points, without the last: equal but for rounding
    else:
        grid = spacing
    starts_above = grid != "leading" or c["steps_offset"] > 0  # the last step, above the first level
    if ends_noisy and starts_above and (grid != "linspace" or name in _MULTISTEP):
        options["end"] = 1
    return grid + (f"({','.join(f'{option}={value}' for option, value in options.items())})" if options else "")


def write(config: ConfigDict, *, path: Path) -> dict[str, Any]:
    """Returns the config of a DDIMScheduler, of a DDPMScheduler for an ancestral sampler, or of an LCMScheduler.

    Args:
      config: config of a diffusion model.
      path: folder of the run, for error messages.

    Raises:
      UserError: a schedule or a parameterization that diffusers' schedulers do not have.
    """
    d, sampler = config.diffusion, config.get("sampler", {})
    schedule = lookup("diffusion.schedule", noise_schedules, d.schedule, injected=("continuous",))
    names = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    where = path / "config.json"
    if schedule.name not in names or d.get("continuous", False) or (schedule.name == "cosine" and schedule.options):
        raise refused(where, "diffusion.schedule", d.schedule, f"must be one of {', '.join(names)} for diffusers")
    if d.parameterization not in predictions:
        raise refused(where, "diffusion.parameterization", d.parameterization, "must be eps, x0 or v for diffusers")
    ancestral = str(sampler.get("name", "ddim")).startswith("ancestral")
    consistency = sampler.get("name") == "lcm"
    grid = lookup("sampler.grid", time_grids, str(sampler.get("grid", "leading")), injected=("schedule",))
    threshold = lookup("sampler.threshold", clipping, str(sampler.get("threshold", "clip")))
    fields: dict[str, Any] = {
        "_class_name": "LCMScheduler" if consistency else "DDPMScheduler" if ancestral else "DDIMScheduler",
        "num_train_timesteps": d.timesteps,
        "beta_schedule": names[schedule.name],
        "prediction_type": predictions[d.parameterization],
        "rescale_betas_zero_snr": bool(d.get("zero_terminal_snr", False)),
        "timestep_spacing": grid.name if grid.name in ("trailing", "linspace") else "leading",
        "steps_offset": int(grid.options.get("offset", 0)),
        "clip_sample": threshold.name == "clip",
        "clip_sample_range": float(threshold.options.get("limit", 1.0)) if threshold.name == "clip" else 1.0,
        "thresholding": threshold.name == "dynamic",
        "dynamic_thresholding_ratio": threshold.options.get("percentile", 99.5) / 100,
        "sample_max_value": float(min(threshold.options.get("limit", 1.0), 1e6))
        if threshold.name == "dynamic"
        else 1.0,
    }
    if schedule.name in _DEFAULT_BETAS:
        low, high = _DEFAULT_BETAS[schedule.name]
        scale = 1000 / d.timesteps
        fields["beta_start"] = schedule.options.get("beta_min", low) * scale
        fields["beta_end"] = schedule.options.get("beta_max", high) * scale
    if consistency:
        fields["original_inference_steps"] = int(grid.options.get("among") or d.timesteps)
        fields["timestep_spacing"] = "leading"  # the default, which it ignores
    elif ancestral:
        fields["variance_type"] = d.variance
    else:
        fields["set_alpha_to_one"] = not grid.options.get("end", 0)
    return fields


def write_unclip(config: ConfigDict, *, path: Path) -> dict[str, Any]:
    """Returns the config of an UnCLIPScheduler, whose sampler is ancestral, on a grid from T to 1 (linspace).

    Args:
      config: config of a diffusion model.
      path: folder of the run, for error messages.

    Raises:
      UserError: a schedule, a parameterization, a variance or a threshold that it does not have.
    """
    fields = write(config, path=path)
    for section, name, is_supported, choices in (
        ("diffusion", "schedule", fields["beta_schedule"] == "squaredcos_cap_v2", "cosine"),
        ("diffusion", "zero_terminal_snr", not fields["rescale_betas_zero_snr"], "False"),
        ("diffusion", "parameterization", fields["prediction_type"] != "v_prediction", "eps or x0"),
        ("diffusion", "variance", config.diffusion.variance in _UNCLIP_VARIANCES, " or ".join(_UNCLIP_VARIANCES)),
        ("sampler", "threshold", not fields["thresholding"], "clip or none"),
    ):
        if not is_supported:
            field = f"{section}.{name}"
            raise refused(path / "config.json", field, config[section][name], f"must be {choices} for UnCLIPScheduler")
    shared = ("num_train_timesteps", "beta_schedule", "prediction_type", "clip_sample", "clip_sample_range")
    return {
        "_class_name": "UnCLIPScheduler",
        **{name: fields[name] for name in shared},
        "variance_type": _UNCLIP_VARIANCES[config.diffusion.variance],
    }


def _schedule(c: Mapping[str, Any]) -> str:
    """Returns diffusion.schedule for a beta_schedule, with its ends where they are not the default."""
    name = _SCHEDULES[c["beta_schedule"]]
    if name not in _DEFAULT_BETAS:
        return name
    scale = c["num_train_timesteps"] / 1000  # ours are those of 1000 timesteps
    ends = (c["beta_start"] * scale, c["beta_end"] * scale)
    if all(abs(end - default) < 1e-12 for end, default in zip(ends, _DEFAULT_BETAS[name], strict=True)):
        return name
    return f"{name}(beta_min={ends[0]:.12g},beta_max={ends[1]:.12g})"
