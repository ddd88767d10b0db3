"""Small folders of diffusers with random weights, written without diffusers."""

import json

import numpy as np
from safetensors.numpy import load_file, save_file

from diffjax.conversion.diffusers_folder import read_folder
from diffjax.models.parameter_paths import flatten
from diffjax.published import table
from diffjax.runs.loading import build_model

UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": None,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
CODEC = {
    "_class_name": "AutoencoderKL",
    "sample_size": 32,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_component(folder, config):
    """Writes a component of random weights; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    save_file({"x": np.zeros(1, np.float32)}, folder / WEIGHTS)
    run = read_folder(folder)
    for section, name in ((run.config, "adversarial"), (run.config.train, "discriminator")):  # files have none
        if name in section:
            del section[name]
    shapes = flatten(build_model(run.config, folder).variable_shapes)
    rng = np.random.default_rng(0)
    values = {path: rng.normal(0.0, 0.1, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    tensors = table.write(run.table, values)
    save_file(tensors, folder / WEIGHTS)
    return tensors


def write_pipeline(folder, *, unet=UNET, scheduler=SCHEDULER):
    """Writes a DDIMPipeline of random weights; returns the folder."""
    write_component(folder / "unet", unet)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    write_json(folder / "model_index.json", {**index, "scheduler": ["diffusers", scheduler["_class_name"]]})
    return folder


def write_json(path, fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def weights(run):
    """Returns the arrays of an imported run."""
    return load_file(run / "weights.safetensors")
