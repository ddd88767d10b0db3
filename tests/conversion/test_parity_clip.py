"""CLIPs of transformers with random weights embed the same after an import, and are the same after an export."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils  # noqa: E402

from diffjax import cli  # noqa: E402
from diffjax.data import tokenizer  # noqa: E402
from diffjax.errors import UserError  # noqa: E402
from diffjax.models.parameter_paths import flatten  # noqa: E402
from diffjax.nn.clip import TextTransformer  # noqa: E402
from diffjax.published import table  # noqa: E402
from diffjax.published.tables import clip as tables  # noqa: E402
from diffjax.runs.loading import load, open_clip  # noqa: E402
from diffjax.typing import ImageSpec  # noqa: E402
from tests import parity  # noqa: E402
from tests.data.test_tokenizer import Reference, small_merges, write_folder  # noqa: E402

pytestmark = pytest.mark.parity

VOCABULARY = len(Reference(small_merges()).vocab)
LENGTH, SIZE = 9, 16
ENDS = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "projection_dim": 12,
    **ENDS,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": 4,
    "projection_dim": 12,
    "hidden_act": "gelu",
}
CAPTIONS = ["hello world", "the photo: été 日本 👍🏽!", "", "cats " * 20]
PREPROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def randomise(model):
    """Nothing stays at zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.2 * torch.randn_like(p))
    return model.eval()


def text_config(**changes):
    return transformers.CLIPTextConfig(**{**TEXT, **changes})


CLASSES = {
    "CLIPModel": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    ),
    "CLIPTextModel": lambda: transformers.CLIPTextModel(text_config()),
    "CLIPTextModelWithProjection": lambda: transformers.CLIPTextModelWithProjection(text_config()),
    "CLIPVisionModelWithProjection": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**VISION)
    ),
    "CLIPVisionModel": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
}


def launch(*arguments):
    assert cli.main(["launch.py", *arguments]) == 0


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("vocabulary") / "tokenizer", small_merges())


@pytest.fixture(scope="module", params=CLASSES)
def folders(request, tmp_path_factory):
    """Returns a model of transformers, the folder of its import, and that of the import's export."""
    folder = tmp_path_factory.mktemp(request.param)
    model = randomise(CLASSES[request.param]())
    model.save_pretrained(folder / "theirs")
    write_folder(folder / "theirs", small_merges())
    (folder / "theirs" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    launch("import", f"--source={folder / 'theirs'}", f"--workdir={folder / 'run'}")
    launch("export", f"--workdir={folder / 'run'}", f"--out={folder / 'exported'}", "--format=diffusers")
    return model, folder


def normalised(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def embeddings(output):
    """Returns the embeddings of a class with one encoder."""
    for name in ("text_embeds", "image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name).numpy()
    raise AssertionError


def test_the_import_embeds_the_same(folders):
    model, folder = folders
    run = load(folder / "run")
    bound, name = run.clip, type(model).__name__
    assert run.parameters == sum(p.numel() for p in model.parameters())
    images = np.random.default_rng(0).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
    pixels = ((images + 1) / 2 - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"]
    theirs = {"pixel_values": torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)}
    if "Vision" not in name:
        ids = transformers.CLIPTokenizer.from_pretrained(folder / "theirs")(
            CAPTIONS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )["input_ids"]
        tokens = run.tokenizer.encode(CAPTIONS, LENGTH)
        states, texts = jax.jit(lambda t: (bound.text_states(t), bound.embed_texts(t)))(tokens)
        with torch.no_grad():
            output = (model.text_model if hasattr(model, "text_model") else model)(input_ids=ids)
            np.testing.assert_allclose(states, output.last_hidden_state.numpy(), atol=1e-4)  # at the padding too
            if name != "CLIPModel":
                np.testing.assert_allclose(texts, normalised(embeddings(model(input_ids=ids))), atol=1e-4)
                with pytest.raises(UserError, match="image_encoder: this CLIP encodes captions only"):
                    bound.embed_images(images)
                return
            theirs["input_ids"] = ids
    found = jax.jit(bound.embed_images)(images)
    with torch.no_grad():
        output = model(**theirs)
    np.testing.assert_allclose(
        found, normalised(embeddings(output) if name != "CLIPModel" else output.image_embeds.numpy()), atol=1e-4
    )
    if name == "CLIPModel":
        logits = bound.scale * found @ np.asarray(texts).T
        np.testing.assert_allclose(logits, output.logits_per_image.numpy(), atol=1e-4)
    else:
        with pytest.raises(UserError, match="text_encoder: this CLIP encodes images only"):
            bound.embed_texts(np.zeros((1, LENGTH), int))


def test_the_export_is_the_source_bit_for_bit(folders):
    model, folder = folders
    again = type(model).from_pretrained(folder / "exported")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ignored = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "pad_token_id", "architectures"}
    if type(model).__name__ in ("CLIPTextModel", "CLIPVisionModel"):  # which have no projection
        ignored |= {"projection_dim"}
    before, after = (json.loads(each.config.to_json_string(use_diff=False)) for each in (model, again))
    for section in ("text_config", "vision_config"):
        for config in (before, after):
            if section in config:
                config |= {f"{section}.{field}": value for field, value in config.pop(section).items()}
    differing = [f for f in before if f.rpartition(".")[2] not in ignored and before[f] != after.get(f)]
    assert not differing
    processor = (
        json.loads((folder / "exported" / "preprocessor_config.json").read_text())
        if "Text" not in type(model).__name__
        else PREPROCESSOR
    )
    assert {name: processor[name] for name in PREPROCESSOR} == PREPROCESSOR


def test_the_exported_tokenizer_gives_the_same_ids(folders):
    model, folder = folders
    if "Vision" in type(model).__name__:
        assert not (folder / "exported" / "vocab.json").exists()
        return
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    before, after = (
        transformers.CLIPTokenizer.from_pretrained(folder / side)(CAPTIONS, **options)["input_ids"]
        for side in ("theirs", "exported")
    )
    assert before == after


def test_an_imported_clip_embeds_images_of_any_size(folders):
    model, folder = folders
    if type(model).__name__ != "CLIPModel":
        return
    system, variables = open_clip(folder / "run", ImageSpec(40, 3, 0))[:2]
    images = np.random.default_rng(0).uniform(-1, 1, (2, 40, 40, 3)).astype(np.float32)
    published, weights = open_clip(folder / "theirs", ImageSpec(40, 3, 0))[:2]
    found, expected = (jax.jit(s.clip(v).embed_images)(images) for s, v in ((system, variables), (published, weights)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def arrays_of(model):
    """Returns the weights of a text encoder of transformers by paths of ours."""
    encoder = TextTransformer(VOCABULARY, width=16, layers=2, heads=2, dimensions=0, mlp_ratio=2.5)
    shapes = {"params": {"model": {"text": parity.shapes(encoder, np.zeros((1, LENGTH), int))}}}
    tensors = parity.tensors(model)
    leaves = parity.flat(shapes)
    return table.read(tables.transformers(tensors), leaves, parity.lazy(tensors), network="the module")


@pytest.mark.parametrize("variant", ["sd1_text", "sd2_text"])
def test_the_text_encoder_of_a_file_of_stable_diffusion(variant, vocabulary, tmp_path):
    """Also, diffusers' converter turns the written names of version 2 into those of transformers."""
    model = randomise(
        transformers.CLIPTextModel(text_config(hidden_act="gelu" if variant == "sd2_text" else "quick_gelu"))
    )
    arrays = arrays_of(model)
    if variant == "sd1_text":
        written = {
            f"cond_stage_model.transformer.{k}": v for k, v in table.write(tables.transformers(), arrays).items()
        }
    else:
        written = {f"cond_stage_model.model.{k}": v for k, v in table.write(tables.openai(), arrays).items()}
        last = {name: value + 1 for name, value in written.items() if "resblocks.1." in name}  # which is not used
        written |= {name.replace("resblocks.1.", "resblocks.2."): value for name, value in last.items()}
        written["cond_stage_model.model.text_projection"] = np.eye(16, dtype=np.float32)
        written["cond_stage_model.model.logit_scale"] = np.array(4.6, np.float32)
        checkpoint = {name: torch.tensor(value) for name, value in written.items()}
        converted = single_file_utils.convert_open_clip_checkpoint(model, checkpoint)
        theirs = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
        for name, tensor in model.state_dict().items():
            assert torch.equal(theirs[name.removeprefix("text_model.")], tensor), name
    save_file(written, tmp_path / "model.safetensors")
    fields = ["width=16", "layers=2", "heads=2", "mlp_ratio=2.5"]
    padding = VOCABULARY - 1 if variant == "sd1_text" else 0
    launch(
        "import",
        f"--source={tmp_path / 'model.safetensors'}",
        f"--config=configs/published/clip.py:{variant}",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.text_encoder.{field}" for field in fields),
        f"--config.text_encoder.padding={padding}",
        f"--config.text.vocabulary={VOCABULARY}",
        f"--config.text.length={LENGTH}",
        f"--config.text.tokenizer={vocabulary}",
    )
    run = load(tmp_path / "run")
    tokens = run.tokenizer.encode(CAPTIONS, LENGTH)
    states = jax.jit(run.clip.text_states)(tokens)
    with torch.no_grad():
        ids = torch.tensor(np.where(tokens < 0, padding, tokens)).long()
        np.testing.assert_allclose(states, model(input_ids=ids).last_hidden_state.numpy(), atol=1e-4)


def test_a_file_of_openai_is_the_import_of_the_folder_of_transformers(folders, vocabulary, tmp_path):
    model, folder = folders
    if type(model).__name__ != "CLIPModel":
        return
    run = load(folder / "run")
    arrays = {path: np.asarray(leaf) for path, leaf in flatten({"params": run.variables["params"]}).items()}
    written = table.write(tables.openai(), arrays)
    written |= {"input_resolution": np.array(SIZE), "context_length": np.array(LENGTH), "vocab_size": np.array(1)}
    save_file({name: np.asarray(value, order="C") for name, value in written.items()}, tmp_path / "clip.safetensors")
    encoders = {"image_encoder": ("width=24", "layers=2", "heads=3", "mlp_ratio=3", "patch=4", "activation=gelu")}
    encoders["text_encoder"] = ("width=16", "layers=2", "heads=2")
    launch(
        "import",
        f"--source={tmp_path / 'clip.safetensors'}",
        "--config=configs/published/clip.py:vit_b32",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{section}.{field}" for section, fields in encoders.items() for field in fields),
        "--config.text_encoder.mlp_ratio=2.5",
        "--config.model.dimensions=12",
        f"--config.data.image_size={SIZE}",
        f"--config.text.vocabulary={VOCABULARY}",
        f"--config.text.length={LENGTH}",
        f"--config.text.tokenizer={vocabulary}",
    )
    before, after = (load_file(path / "weights.safetensors") for path in (folder / "run", tmp_path / "run"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert load(tmp_path / "run").tokenizer.vocabulary == tokenizer.load(vocabulary).vocabulary


def test_a_folder_without_a_tokenizer_is_reported(tmp_path, capsys):
    CLASSES["CLIPTextModel"]().save_pretrained(tmp_path / "theirs")
    assert cli.main(["launch.py", "import", f"--source={tmp_path / 'theirs'}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "vocab.json: does not exist; use a tokenizer.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_without_a_vocabulary_is_reported(tmp_path, capsys):
    save_file({"ln_final.weight": np.ones(3, np.float32)}, tmp_path / "clip.safetensors")
    flags = [f"--source={tmp_path / 'clip.safetensors'}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["launch.py", "import", *flags, "--config=configs/published/clip.py:vit_b32"]) == 2
    assert "text.tokenizer: is empty, and the file has no vocabulary" in capsys.readouterr().err
