"""What is measured of diffusion models: likelihood, and reconstruction by DDIM."""

import functools

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.diffusion import clipping, likelihood, sampling
from diffjax.diffusion.denoiser import thresholded
from diffjax.errors import UserError, unknown
from diffjax.evaluation import figures
from diffjax.evaluation.settings import SHOWN, Examples, Settings, mean_and_error, over
from diffjax.inference import image_grids
from diffjax.metrics.strata import draw_terms
from diffjax.models.diffusion.sampling_settings import Plan, encode
from diffjax.models.pixels import to_grey_levels, to_unit_range
from diffjax.runs.loading import Run

_TERMS_AT_ONCE = 10  # of the bound, in one call of the compiled program
_EXACT_IMAGES, _EXACT_VALUES = 8, 256  # how many traces are computed exactly, of images how small


def nll(settings: Settings, trained: Run, examples: Examples) -> dict:
    """Bits/dim by the bound, term by term, and by the ODE unless that has no steps."""
    images, system, steps = examples.images, trained.system, settings.steps
    if trained.config.system == "latent":
        raise UserError("--metrics=nll: the likelihood of latents is not that of pictures")
    if settings.decoder not in likelihood.DECODERS:
        raise unknown("decoder", settings.decoder, likelihood.DECODERS)
    last = trained.config.diffusion.timesteps
    bound_plan = _plan(settings, trained, steps[0] if steps else last, "trailing")
    ode_steps = min(settings.ode_steps, last)
    ode_plan = _plan(settings, trained, ode_steps, "log_snr") if ode_steps else None
    count = int(bound_plan.steps)
    drawn = min(max(2, settings.terms) if settings.terms else count, count)
    rng = np.random.default_rng(settings.seed)

    @jax.jit
    def prior(variables, condition, x0, plan):
        model = system.model(variables, condition)
        return jax.vmap(likelihood.prior_term, (0, None))(model.encode(x0), model.process.schedule(plan.times[0]))

    @jax.jit
    def terms(variables, keys, condition, x0, plan, which):
        model = system.model(variables, condition)
        denoise = thresholded(model.denoiser, clipping.clip)  # as DDPM evaluates it
        levels, variance = model.process.schedule(plan.times), model.process.variance.bind()
        convention = {"variance": variance, "decoder": settings.decoder}
        return likelihood.bound_terms(keys, denoise, model.encode(x0), levels, which, **convention).T

    @functools.partial(jax.jit, static_argnames="exact")
    def ode(variables, keys, condition, x0, plan, exact):
        model = system.model(variables, condition)
        dequantize_key, probe_key = sampling.split(keys)
        x0 = likelihood.dequantized(dequantize_key, model.encode(x0))
        levels = model.process.schedule(plan.times)
        return likelihood.ode_bits(probe_key, model.denoiser, x0, levels, plan.steps, exact=exact)

    def measure(keys, condition):
        x0 = to_unit_range(condition["image"])
        which, weight = draw_terms(rng, count, drawn)
        padded = np.resize(which, -(-drawn // _TERMS_AT_ONCE) * _TERMS_AT_ONCE).reshape(-1, _TERMS_AT_ONCE)
        values = [terms(trained.variables, keys, condition, x0, bound_plan, some) for some in padded]
        found = {
            "prior": prior(trained.variables, condition, x0, bound_plan),
            "terms": np.concatenate(jax.device_get(values), axis=-1)[:, :drawn],
            "which": np.tile(which, (len(x0), 1)),
            "weight": np.tile(weight, (len(x0), 1)),
        }
        if ode_plan:
            found["ode"] = ode(trained.variables, keys, condition, x0, ode_plan, exact=False)
        return found

    def measure_exactly(keys, condition):
        return ode(trained.variables, keys, condition, to_unit_range(condition["image"]), ode_plan, exact=True)

    found = over(settings, "nll", measure, examples)
    few = settings.exact_trace
    if few is None:
        few = _EXACT_IMAGES if images[0].size <= _EXACT_VALUES else 0
    few = max(few, 2) if few and ode_plan else 0  # for a standard error
    exact = over(settings, "exact trace", measure_exactly, examples.first(few)) if few else None
    decoder = found["which"] == count - 1
    weighted = found["weight"] * found["terms"]
    columns = {
        "prior": found["prior"],
        "kl": np.sum(np.where(decoder, 0.0, weighted), axis=-1),
        "decoder": np.sum(np.where(decoder, weighted, 0.0), axis=-1),
    }
    columns = {"bound": sum(columns.values()), **columns}
    if ode_plan:
        columns["ode_hutchinson"] = found["ode"]
    if few:
        columns |= {"ode_exact_trace": exact, "exact_minus_hutchinson": exact - found["ode"][:few]}
    result = {name: mean_and_error(values) for name, values in columns.items()}
    explained = {
        "bound": f"variational bound over {count} steps",
        "prior": "  L_T, the prior's",
        "kl": f"  L_1 to L_{count - 1}",
        "decoder": f"  L_0, the decoder's ({settings.decoder})",
        "ode_hutchinson": f"ODE, {ode_steps} steps, Hutchinson's trace",
        "ode_exact_trace": f"ODE, exact trace, first {few} images",
        "exact_minus_hutchinson": "  minus Hutchinson's on those",
    }
    print(f"bits/dim of {len(images)} images of {settings.split}, checkpoint {trained.step}")
    for name, values in result.items():
        print(f"  {explained[name]:42} {values['mean']:8.4f} +- {values['standard_error']:.4f}")

    which = found["which"].ravel()
    seen = np.unique(which)
    means = (np.bincount(which, found["terms"].ravel(), count) / np.maximum(np.bincount(which, minlength=count), 1))[
        seen
    ]
    by_time = {"t": np.asarray(bound_plan.times)[seen].tolist(), "bits_per_dim": means.tolist()}
    figure = trained.workdir.results / "nll.png"
    figures.terms_figure(figure, by_time, f"terms of the bound, {len(images)} images of {settings.split}")
    print(figure)
    counts = {"steps": count, "terms_drawn": drawn, "decoder_convention": settings.decoder, "ode_steps": ode_steps}
    return {**result, "terms": by_time, **counts}


def reconstruction(settings: Settings, trained: Run, examples: Examples) -> dict:
    """Error of encoding and decoding in as many steps."""
    images, system, grid = examples.images, trained.system, settings.grid or trained.config.sampler.grid
    counts = settings.steps or (10, 20, 50, 100)

    @jax.jit
    def there_and_back(variables, keys, condition, x0, plan):
        latent = encode(system.model(variables, condition), x0, plan)
        return latent, system.sample(variables, keys, {**condition, "latent": latent}, plan)

    rows, shown = [], [images[:SHOWN]]
    for steps in counts:
        plan = _plan(settings, trained, steps, grid, max(counts))

        def measure(keys, condition, plan=plan):
            condition = dict(condition)
            x0 = to_unit_range(condition.pop("image"))  # in a condition it would be one to edit
            latent, x = there_and_back(trained.variables, keys, condition, x0, plan)
            return jnp.mean(((x - x0) / 2) ** 2, axis=(1, 2, 3)), jnp.std(latent, axis=(1, 2, 3)), x

        errors, spread, back = over(settings, f"{steps} steps", measure, examples)
        rows.append({"steps": int(plan.steps), "mse": mean_and_error(errors), "latent_std": float(np.mean(spread))})
        shown.append(np.asarray(to_grey_levels(back[:SHOWN])))
    print(f"reconstruction of {len(images)} images of {settings.split}, checkpoint {trained.step}, grid {grid}")
    print(f"{'steps':>7} {'mse':>10} {'+-':>9} {'std of x_T':>11}")
    for row in rows:
        mse = row["mse"]
        print(f"{row['steps']:7} {mse['mean']:10.6f} {mse['standard_error']:9.6f} {row['latent_std']:11.3f}")
    picture = trained.workdir.results / "reconstruction.png"
    image_grids.save(picture, image_grids.grid(np.concatenate(shown), columns=len(shown[0])))
    print(f"{picture}: the images, then a row for each number of steps")
    return {"grid": grid, "rows": rows, "mse": rows[-1]["mse"]}


def _plan(settings: Settings, trained: Run, steps: int, grid: str, capacity: int | None = None) -> Plan:
    """Without noise, guidance and thresholds: of the model as it is."""
    sampler = {"name": "ddim", "steps": steps, "grid": settings.grid or grid, "threshold": "none"}
    return trained.system.plan(sampler, capacity=capacity)
