"""LoRA: trained low-rank updates of the kernels of a frozen model.

A kernel W [in, out] becomes W + (alpha / r) A B, with A [in, r] Gaussian and B [r, out] zero at the start. (The paper
writes B A, for kernels [out, in].) The update is a function of the parameters before the model is applied, so networks
do not know of it. Dense layers and 1x1 convolutions, such as attention projections, can be adapted.

Reference: Hu et al. 2021 (LoRA), section 4.1.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.errors import UserError, validate_integer, validate_number
from diffjax.models.base import Model
from diffjax.models.parameter_paths import check_patterns, flatten, matches, path_of, unflatten
from diffjax.typing import LossFn, PRNGKey, Scalar, Variables

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraModel(Model):
    """A model whose parameters are the matrices A and B of the adapted layers of another model.

    Attributes:
      model: the adapted model. Its parameters are in `frozen` under "base".
      kernels: shapes of the adapted kernels, by path of the layer, such as "model/middle_attention/qkv".
      rank: number r of columns of A and rows of B.
      alpha: the update is scaled by alpha / r.
    """

    model: Model
    kernels: Mapping[str, tuple[int, ...]]
    rank: int
    alpha: float
    note: str = ""

    def init(self, key: PRNGKey) -> Variables:
        matrices = {}
        for layer, shape in self.kernels.items():
            layer_key = jax.random.fold_in(key, zlib.crc32(layer.encode()))
            inputs, outputs = math.prod(shape[:-1]), shape[-1]
            a = jax.random.normal(layer_key, (inputs, self.rank)) / math.sqrt(inputs)
            matrices |= {f"{layer}/lora_A": a, f"{layer}/lora_B": jnp.zeros((self.rank, outputs))}
        collections = {name: tree for name, tree in self.model.init(key).items() if name != "params"}
        return {**collections, "params": unflatten(matrices)}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {group: functools.partial(self._loss, loss) for group, loss in self.model.losses.items()}

    @property
    def group_size(self) -> int:
        return self.model.group_size

    def _loss(self, loss: Callable, variables: Variables, *arguments: Any) -> Any:
        merge = functools.partial(self.merge, variables["frozen"]["base"])
        merged = {name: merge(variables[name]) for name in ("params", "ema") if name in variables}
        return loss({**variables, **merged}, *arguments)

    def merge(self, base: Params, matrices: Params) -> Params:
        """Returns the parameters of the adapted model: the base parameters with the updates added.

        Args:
          base: parameters of `model`.
          matrices: parameters of this model.
        """
        flat = flatten(matrices)

        def add(keys: Any, leaf: Any) -> Any:
            layer = path_of(keys[:-1])
            if path_of(keys[-1:]) != "kernel" or layer not in self.kernels:
                return leaf
            update = flat[f"{layer}/lora_A"] @ flat[f"{layer}/lora_B"]
            return leaf + (self.alpha / self.rank) * update.reshape(leaf.shape)

        return jax.tree_util.tree_map_with_path(add, base)

    def to_peft(self, matrices: Params) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parameters in the format of peft, for modules that have the names of the layers.

        Returns:
          Tensors of adapter_model.safetensors: of each layer "base_model.model.LAYER.lora_A.weight" [r, in] and
          "base_model.model.LAYER.lora_B.weight" [out, r], with two more dimensions of size 1 for a convolution. And the
          fields of adapter_config.json.
        """
        tensors = {}
        for path, leaf in flatten(matrices).items():
            layer, _, name = path.rpartition("/")
            ones = (1,) * (len(self.kernels[layer]) - 2)
            tensors[f"base_model.model.{_dotted(layer)}.{name}.weight"] = leaf.T.reshape(*leaf.T.shape, *ones)
        return tensors, {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": sorted(map(_dotted, self.kernels)),
            "bias": "none",
            "inference_mode": True,
        }

    def summarize(self, collections: Mapping[str, Any]) -> Mapping[str, Scalar]:
        return self.model.summarize(collections)

    def warn(self, metrics: Mapping[str, float]) -> str | None:
        return self.model.warn(metrics)


def is_lora(config: ConfigDict) -> bool:
    """Returns whether a config trains LoRA matrices."""
    return bool(config.get("train", {}).get("lora", {}).get("rank", 0))


def adapt(config: ConfigDict, model: Model, base: Params) -> LoraModel:
    """Returns the LoRA of a model, as `train.lora` describes it.

    Args:
      base: parameters of `model`, or their shapes.

    Raises:
      UserError: the model has no layers to adapt or several losses, or a field of `train` does not go with LoRA.
    """
    c = config.train.lora
    rank = validate_integer("train.lora.rank", c.rank)
    alpha = validate_number("train.lora.alpha", c.alpha, low=0, exclusive="low")
    for name in ("freeze", "start_fresh"):
        if config.train.get(name):
            raise UserError(
                f"train.{name}={config.train[name]}: is not supported with train.lora.rank, which freezes all other "
                "weights; select layers by train.lora.targets"
            )
    if len(model.losses) != 1:
        raise UserError(
            f"train.lora.rank={rank}: is only supported for models with one loss, and system={config.system} trains "
            f"{', '.join(model.losses)}; set it to 0"
        )
    leaves = {path: leaf.shape for path, leaf in flatten(base).items()}
    kernels = {path: shape for path, shape in leaves.items() if _is_dense(path, shape)}
    if not kernels:
        raise UserError(f"train.lora.rank={rank}: system={config.system} has no dense layers to adapt; set it to 0")
    check_patterns("train.lora.targets", c.targets, kernels)
    adapted = {path.rpartition("/")[0]: shape for path, shape in kernels.items() if matches(path, c.targets)}
    if not adapted:
        raise UserError(f"train.lora.targets={c.targets}: must name at least one layer, such as ('*',)")
    if rank > (largest := max(max(shape) for shape in adapted.values())):
        raise UserError(
            f"train.lora.rank={rank}: must be at most {largest}, the largest side of an adapted kernel; lower it"
        )
    return LoraModel(
        classes=model.classes,
        text=model.text,
        note=model.note,
        frozen={**model.frozen, "base": base},
        model=model,
        kernels=adapted,
        rank=rank,
        alpha=alpha,
    )


def _dotted(layer: str) -> str:
    return layer.replace("/", ".")


def _is_dense(path: str, shape: tuple[int, ...]) -> bool:
    """Returns whether a parameter is the kernel of a dense layer or of a 1x1 convolution."""
    return path.endswith("/kernel") and len(shape) in (2, 4) and shape[:-2] in ((), (1, 1))
