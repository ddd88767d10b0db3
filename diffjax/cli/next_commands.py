"""Commands to try with a run."""

import os
from collections.abc import Callable

from diffjax.models import capabilities
from diffjax.models.base import Model

# For models of one capability; {run} is the flag of the workdir.
_NEXT_COMMANDS: tuple[tuple[Callable[[Model], bool], str], ...] = (
    (capabilities.is_classifier, "evaluate {run} --metrics=accuracy"),
    (capabilities.is_classifier, "sweep --workdir=RUN --classifier={path} --classifier_scale=0,1,2"),
    (capabilities.outputs_embeddings, "sample --workdir={parent}, once the full pipeline is trained"),
    (
        lambda model: capabilities.samples_images(model) and capabilities.is_upsampling_stage(model),
        "sample {run} --image=test:0 --num=8 --out=samples.png",
    ),
    (
        lambda model: _samples_from_prompts(model) and capabilities.is_text_conditioned(model),
        'sample {run} --prompt="..." --num=16 --out=samples.png',
    ),
    (
        lambda model: _samples_from_prompts(model) and not capabilities.is_text_conditioned(model),
        "sample {run} --out=samples.png --num=100",
    ),
    (capabilities.is_clip, "evaluate {run} --metrics=retrieval,zero_shot --num=1000"),
    (
        lambda model: capabilities.is_diffusion(model) and not capabilities.outputs_embeddings(model),
        "sweep {run} --steps=5,10,20,50,100 --eta=0,1",
    ),
    (
        lambda model: capabilities.is_masked_prior(model) and not capabilities.outputs_embeddings(model),
        "sweep {run} --sampler=confidence,ancestral_unmasking --steps=2,4,8,16",
    ),
    (
        lambda model: capabilities.is_autoencoder(model) and not capabilities.outputs_embeddings(model),
        "evaluate {run} --metrics=reconstruction",
    ),
    (
        lambda model: (
            capabilities.is_autoencoder(model)
            and not (capabilities.is_generative(model) or capabilities.outputs_embeddings(model))
        ),
        "train --config=configs/prior_transformer.py --config.codec={path} --workdir=PRIOR",
    ),
)


def _samples_from_prompts(model: Model) -> bool:
    return capabilities.samples_images(model) and not capabilities.is_upsampling_stage(model)


def next_commands(model: Model, workdir: str) -> list[str]:
    """Returns commands to try with a trained model, without "python launch.py"."""
    paths = {"run": f"--workdir={workdir}", "path": workdir, "parent": os.path.dirname(workdir)}
    return [command.format(**paths) for applies, command in _NEXT_COMMANDS if applies(model)]
