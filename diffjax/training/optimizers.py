"""Optimisers of optax. Each public function is a choice of `train.optimizer`.

A choice takes the learning rate by number of updates, and `decay`, which adds the weight decay to a direction: the
parameters change by `-rate * (direction + weight_decay * parameter)`. The fields `train.beta1` and `train.beta2` are
passed to the choices that have these arguments.
"""

import functools
from typing import Any

import jax
import optax
from jax import numpy as jnp

from diffjax.errors import UserError, validate_integer, validate_number
from diffjax.models.parameter_paths import name_of

_FIELD = "train.optimizer"


def adamw(
    rate: optax.Schedule,
    decay: optax.GradientTransformation,
    *,
    beta1: float,
    beta2: float,
    bfloat16_moment: bool = False,
) -> optax.GradientTransformation:
    """Returns Adam with decoupled weight decay.

    Args:
      bfloat16_moment: whether the first moment is stored as bfloat16, which saves a quarter of the state's memory.

    Reference: Kingma & Ba 2015 (Adam), algorithm 1; Loshchilov & Hutter 2019 (AdamW), algorithm 2.
    """
    direction = optax.scale_by_adam(b1=beta1, b2=beta2, mu_dtype=jnp.bfloat16 if bfloat16_moment else None)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))


def lion(
    rate: optax.Schedule,
    decay: optax.GradientTransformation,
    *,
    beta1: float,
    beta2: float,
    bfloat16_moment: bool = False,
) -> optax.GradientTransformation:
    """Returns Lion, the sign of an interpolation of momentum and gradient, with one moment in its state.

    Its updates are larger than Adam's, so it needs a smaller learning rate and a larger weight decay.

    Args:
      bfloat16_moment: whether the moment is stored as bfloat16, which saves half of the state's memory.

    Reference: Chen et al. 2023 (Lion), algorithm 2.
    """
    direction = optax.scale_by_lion(b1=beta1, b2=beta2, mu_dtype=jnp.bfloat16 if bfloat16_moment else None)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))


def adan(
    rate: optax.Schedule,
    decay: optax.GradientTransformation,
    *,
    gradient: float = 0.98,
    difference: float = 0.92,
    square: float = 0.99,
) -> optax.GradientTransformation:
    """Returns Adan, adaptive Nesterov momentum.

    Args:
      gradient, difference, square: decays of the moments of the gradient, of its difference to the gradient before, and
        of the square of their sum.

    Reference: Xie et al. 2022 (Adan), algorithm 1.
    """
    for name, value in (("gradient", gradient), ("difference", difference), ("square", square)):
        validate_number(f"{_FIELD}=adan: {name}", value, low=0, high=1, exclusive="high")
    direction = optax.scale_by_adan(b1=gradient, b2=difference, b3=square)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))


def adafactor(
    rate: optax.Schedule,
    decay: optax.GradientTransformation,
    *,
    momentum: float = 0.0,
    parameter_scale: bool = False,
    min_size: int = 128,
) -> optax.GradientTransformation:
    """Returns Adafactor, whose second moment of a matrix is an outer product of a row and a column.

    Args:
      momentum: decay of the first moment; 0: none, which saves its memory.
      parameter_scale: multiply the update by the root mean square of the parameter, as in the paper. The learning rate
        is then relative, and arrays that are initially zero move slowly.
      min_size: an array is factored if two of its axes have this size at least.

    Reference: Shazeer & Stern 2018 (Adafactor), algorithms 4 and 5.
    """
    validate_number(f"{_FIELD}=adafactor: momentum", momentum, low=0, high=1, exclusive="high")
    validate_integer(f"{_FIELD}=adafactor: min_size", min_size)
    descent = optax.adafactor(
        momentum=momentum or None,
        multiply_by_parameter_scale=bool(parameter_scale),
        min_dim_size_to_factor=int(min_size),
    )
    return optax.chain(descent, optax.scale(-1.0), decay, optax.scale_by_learning_rate(rate))


def muon(
    rate: optax.Schedule,
    decay: optax.GradientTransformation,
    *,
    beta1: float,
    beta2: float,
    momentum: float = 0.95,
    steps: int = 5,
    rms: float = 0.2,
) -> optax.GradientTransformation:
    """Returns Muon, the momentum orthogonalised by Newton-Schulz iterations, for kernels, and Adam for the rest.

    A kernel of a convolution [height, width, in, out] is a matrix [height * width * in, out]. Tables of embeddings,
    gains, biases and vectors are updated by Adam with Nesterov momentum, at the same learning rate.

    Args:
      momentum: decay of the momentum.
      steps: Newton-Schulz iterations.
      rms: root mean square of the direction, about that of Adam, so that the learning rate of Adam fits; 0: the
        direction is orthogonal, times `sqrt(max(1, out / in))`.

    Reference: Jordan et al. 2024 (Muon); Liu et al. 2025 (Muon is scalable), which matches `rms`.
    """
    validate_number(f"{_FIELD}=muon: momentum", momentum, low=0, high=1, exclusive="high")
    validate_integer(f"{_FIELD}=muon: steps", steps)
    validate_number(f"{_FIELD}=muon: rms", rms, low=0)
    descent = optax.contrib.muon(
        1.0,
        ns_steps=int(steps),
        beta=momentum,
        adam_b1=beta1,
        adam_b2=beta2,
        consistent_rms=rms or None,
        muon_weight_dimension_numbers=_matrices,
    )
    return optax.chain(descent, optax.scale(-1.0), decay, optax.scale_by_learning_rate(rate))


def sgd(
    rate: optax.Schedule, decay: optax.GradientTransformation, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns stochastic gradient descent with momentum. The weight decay is decoupled (SGDW).

    Args:
      momentum: decay of the sum of gradients; 0: none.
      nesterov: whether the momentum is Nesterov's.
    """
    validate_number(f"{_FIELD}=sgd: momentum", momentum, low=0, high=1, exclusive="high")
    direction = optax.trace(momentum, nesterov=bool(nesterov)) if momentum else optax.identity()
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))


def prodigy(
    rate: optax.Schedule,
    decay: optax.GradientTransformation,
    *,
    beta1: float,
    beta2: float,
    factor: float = 1.0,
    initial: float = 1e-6,
) -> optax.GradientTransformation:
    """Returns Prodigy: Adam whose learning rate is an estimate of the distance to the solution, times `rate`.

    `rate` is relative: the learning rate of the config should be 1.

    Args:
      factor: factor of the estimate.
      initial: estimate before the first update.

    Reference: Mishchenko & Defazio 2023 (Prodigy), algorithm 4.
    """
    for name, value in (("factor", factor), ("initial", initial)):
        validate_number(f"{_FIELD}=prodigy: {name}", value, low=0, exclusive="low")
    # A warm-up from zero divides by zero without the safeguard.
    inner = optax.contrib.prodigy(
        rate, betas=(beta1, beta2), estim_lr0=initial, estim_lr_coef=factor, safeguard_warmup=True
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        state = state._replace(params0=_select(state.count == 0, params, state.params0))
        updates, new_state = inner.update(updates, state, params)
        decays, _ = decay.update(jax.tree.map(jnp.zeros_like, params), optax.EmptyState(), params)
        step_size = state.estim_lr * rate(state.count)
        return jax.tree.map(lambda update, decay: update - step_size * decay, updates, decays), new_state

    return optax.GradientTransformation(_copying(inner.init), update)


def schedule_free(
    rate: optax.Schedule, decay: optax.GradientTransformation, *, beta1: float, beta2: float
) -> optax.GradientTransformation:
    """Returns schedule-free AdamW, whose average of the weights replaces momentum and the decay of the learning rate.

    The parameters are the points y at which gradients are taken; `averaged_params` returns the average x.

    Args:
      beta1: interpolation between the average and the base sequence z, above 0.

    Raises:
      UserError: at the creation of the state, for an EDM2 network: z would not keep the fixed norm of its kernels.

    Reference: Defazio et al. 2024 (The Road Less Scheduled), algorithm 1.
    """
    validate_number("train.beta1", beta1, low=0, exclusive="low")
    rms = optax.scale_by_rms(decay=beta2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)
    base = optax.chain(rms, decay, optax.scale_by_learning_rate(rate))
    inner = optax.contrib.schedule_free(base, rate, b1=beta1)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(updates, state._replace(z=_select(state.step_count == 1, params, state.z)), params)

    def init(params: Any) -> Any:
        if any(name_of(path) == "unit_kernel" for path, _ in jax.tree_util.tree_leaves_with_path(params)):
            raise UserError(
                f"{_FIELD}=schedule_free: does not keep the norm of an EDM2 network's kernels; choose another optimizer"
            )
        return _copying(inner.init)(params)

    return optax.GradientTransformation(init, update)


def _select(condition: Any, params: Any, others: Any) -> Any:
    """Returns `params` at the first update, since the weights may change after the state is created."""
    return jax.tree.map(functools.partial(jnp.where, condition), params, others)


def _copying(init: optax.TransformInitFn) -> optax.TransformInitFn:
    """Returns `init` with a state that shares no buffer with the parameters, since training donates both."""
    return lambda params: init(jax.tree.map(jnp.copy, params))


def _matrices(params: Any) -> Any:
    """Returns Muon's axes of kernels and of the matrices of LoRA, and None for other leaves."""

    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if name_of(path) not in ("kernel", "unit_kernel", "lora_A", "lora_B") or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
