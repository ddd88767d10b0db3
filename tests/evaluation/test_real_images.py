"""Samples against files of images or statistics, with the arrays of ADM's evaluations and of pytorch-fid."""

import io
import os
import resource
import types
import zipfile

import numpy as np
import pytest
import scipy.linalg

from diffjax.errors import UserError
from diffjax.evaluation import real_images, samples
from diffjax.evaluation.metrics import COMPARISONS
from diffjax.evaluation.real_images import open_real_images
from diffjax.evaluation.samples import Measurer
from diffjax.metrics import features
from diffjax.typing import ImageSpec
from tests import tiny
from tests.published_dinov2 import write as write_dinov2

POOLED, SPATIAL = 6, 5  # features of the small network in the place of FID's
RNG = np.random.default_rng(0)
IMAGES, SAMPLES = RNG.integers(0, 256, (80, 8, 8, 1), np.uint8), RNG.integers(0, 200, (50, 8, 8, 1), np.uint8)
MU, MU_S = RNG.normal(size=POOLED), RNG.normal(size=SPATIAL)
SIGMA, SIGMA_S = (np.cov(RNG.normal(size=(2 * n, n)), rowvar=False) for n in (POOLED, SPATIAL))
STATISTICS = {"mu": MU, "sigma": SIGMA, "mu_s": MU_S, "sigma_s": SIGMA_S}
ALL = ["fid", "sfid", "kid", "is", "precision_recall_inception"]


@pytest.fixture(autouse=True)
def small_network(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFJAX_CACHE", str(tmp_path / "cache"))
    widths = {"pooled": ("mu", "sigma", POOLED), "spatial": ("mu_s", "sigma_s", SPATIAL)}
    monkeypatch.setattr(real_images, "_STATISTICS", widths)
    load = features.load

    def load_small(name, weights):
        extract = lambda _, images: dict(zip(("pooled", "spatial", "logits"), split(images), strict=True))  # noqa: E731
        return features.Network(name, (), extract, {"weights": "x"}) if name == "inception" else load(name, weights)

    monkeypatch.setattr(features, "load", load_small)
    monkeypatch.setattr(features, "check", lambda name, weights: None)


def split(images):
    """Returns features of images: groups of their pixels, from 0 to 1."""
    flat = images.reshape(len(images), -1) / 255.0
    return flat[:, :POOLED], flat[:, 10 : 10 + SPATIAL], flat[:, 20:30]


@pytest.fixture(scope="module")
def trained():
    """The part of a run that a `Measurer` uses; it has no data set."""
    system = types.SimpleNamespace(classes=0, text=None)
    return types.SimpleNamespace(config=tiny.config(data__name="npz:none.npz"), system=system, spec=ImageSpec(8, 1, 0))


def file(tmp_path, savez=np.savez, **arrays):
    savez(tmp_path / "reference.npz", **arrays)
    return str(tmp_path / "reference.npz")


def measured(trained, path, names):
    samples.check(names, trained, len(SAMPLES), real=path)
    measure = Measurer(names, trained, real=path)
    return measure(SAMPLES, np.zeros(len(SAMPLES), int)), measure


def distance(mean, covariance, values):
    """Computes the Fréchet distance by SciPy's matrix root, as ADM's evaluator and pytorch-fid."""
    sampled = np.cov(values, rowvar=False)
    root = scipy.linalg.sqrtm(sampled @ covariance).real
    return np.sum((values.mean(0) - mean) ** 2) + np.trace(sampled + covariance - 2 * root)


def test_distances_to_statistics(tmp_path, trained):
    found, measure = measured(trained, file(tmp_path, **STATISTICS), ["fid", "sfid", "is"])
    pooled, spatial, _ = split(SAMPLES)
    assert found["fid"].value == pytest.approx(distance(MU, SIGMA, pooled), rel=1e-5)
    assert found["sfid"].value == pytest.approx(distance(MU_S, SIGMA_S, spatial), rel=1e-5)
    assert measure.real.text == "the statistics of reference.npz"
    provenance = measure.provenance
    assert (provenance["data"], provenance["images"], provenance["statistics"]) == (
        "reference.npz",
        0,
        ["pooled", "spatial"],
    )
    other = Measurer(["fid"], trained, real=file(tmp_path, mu=MU, sigma=2 * SIGMA)).provenance
    assert other["fingerprint"] != provenance["fingerprint"]


@pytest.mark.parametrize("dtype,savez", [(np.float32, np.savez), (np.float64, np.savez_compressed)])
def test_distances_to_statistics_of_pytorch_fid(tmp_path, trained, dtype, savez):
    """pytorch-fid writes mu and sigma only."""
    path = file(tmp_path, savez, mu=MU.astype(dtype), sigma=np.asfortranarray(SIGMA.astype(dtype)))
    found, _ = measured(trained, path, ["fid"])
    assert found["fid"].value == pytest.approx(distance(MU, SIGMA, split(SAMPLES)[0]), rel=1e-4)
    with pytest.raises(UserError, match=r"--metrics=sfid: requires images \(arr_0\) or mu_s and sigma_s, which .*npz"):
        samples.check(["sfid"], trained, 50, real=path)


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_images_are_compared_as_those_of_a_data_set(tmp_path, trained, savez):
    found, measure = measured(trained, file(tmp_path, savez, arr_0=IMAGES), [*ALL, "fd_pixels"])
    pooled, spatial, _ = split(IMAGES)
    for name, kind, real in (("fid", 0, pooled), ("sfid", 1, spatial)):
        expected = distance(real.mean(0), np.cov(real, rowvar=False), split(SAMPLES)[kind])
        assert found[name].value == pytest.approx(expected, rel=1e-4)
    assert 0 <= found["precision_inception"].value <= 1 and found["fd_pixels"].value > 0
    assert measure.real.text == "80 images of reference.npz" and not any("size" in text for text in measure.warnings)


def test_with_both_the_statistics_give_distances_and_the_images_the_rest(tmp_path, trained):
    """ADM's files have statistics of the whole data set, and a part of its images."""
    found, measure = measured(trained, file(tmp_path, arr_0=IMAGES, **STATISTICS), ALL)
    statistics, _ = measured(trained, file(tmp_path, **STATISTICS), ["fid", "sfid"])
    images, _ = measured(trained, file(tmp_path, arr_0=IMAGES), ["kid", "precision_recall_inception"])
    assert {name: found[name] for name in statistics | images} == statistics | images
    assert measure.real.text == "the statistics and 80 images of reference.npz"


def test_images_of_another_size_are_noted(tmp_path, trained):
    path = file(tmp_path, arr_0=RNG.integers(0, 256, (20, 16, 16, 1), np.uint8))
    assert "has images of 16x16, and samples are 8x8: distances" in Measurer(["fid"], trained, real=path).warnings[0]
    with pytest.raises(UserError, match=r"--metrics=fd_pixels: requires real images of the size of the samples"):
        samples.check(["fd_pixels"], trained, 50, real=path)


@pytest.mark.parametrize("name", sorted({"kid", "precision_recall_inception", "fd_pixels", "kd_dinov2", "fd_dinov2"}))
def test_metrics_of_images_are_refused_for_statistics(tmp_path, trained, name):
    path = file(tmp_path, **STATISTICS)
    with pytest.raises(UserError, match=rf"--metrics={name}: requires images \(arr_0\), which .*npz does not have"):
        samples.check([name], trained, 50, real=path)


def test_few_images_are_refused(tmp_path, trained):
    path = file(tmp_path, arr_0=IMAGES[:5])
    with pytest.raises(UserError, match=r"requires at least 6 real images, and .*reference.npz has 5"):
        samples.check(["precision_recall_inception"], trained, 50, real=path)


def test_metrics_in_the_features_of_dinov2(tmp_path, trained):
    names = [name for name in COMPARISONS if name.endswith("dinov2")]
    folder, path = write_dinov2(tmp_path), file(tmp_path, arr_0=IMAGES)
    measure = Measurer(names, trained, real=path, weights={"dinov2": str(folder)})
    found = measure(IMAGES, np.zeros(len(IMAGES), int))
    assert found["fd_dinov2"].value == pytest.approx(0, abs=1e-4) and found["precision_dinov2"].value == 1
    assert measure.columns["fd_dinov2"].heading == "FD-DINOv2"
    provenance = measure.provenance["networks"]["dinov2"]
    assert provenance["weights"].startswith("sha256:") and provenance["resize"] == "Pillow's bicubic to 224"
    assert provenance["architecture"] == "2 layers of width 16, 2 heads"
    assert measure(SAMPLES, np.zeros(len(SAMPLES), int))["fd_dinov2"].value > 1e-3


# --- files that are not such ---


class Trap:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def archive(compression=zipfile.ZIP_STORED, **members):
    """Returns a zip file of bytes by name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return content.getvalue()


def header(shape, descr="|u1"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"shape": shape, "fortran_order": False, "descr": descr})
    return content.getvalue()


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def declaring(size, data):
    """Returns a zip file whose directory declares that its member has `size` bytes."""
    content = archive(zipfile.ZIP_DEFLATED, arr_0=data)
    entry = content.index(b"PK\x01\x02")
    return content[: entry + 24] + size.to_bytes(4, "little") + content[entry + 28 :]


GIBI = 2**30
BAD = {
    "empty": (b"", "is not an .npz file, or is damaged"),
    "text": (b"mu, sigma", "is not an .npz file, or is damaged"),
    "truncated": (npz(arr_0=IMAGES)[:-300], "is not an .npz file, or is damaged"),
    "no known array": (npz(images=IMAGES), "requires arr_0, or mu and sigma, and has images"),
    "nothing": (archive(), "requires arr_0, or mu and sigma, and has nothing"),
    "a wrong dimension": (npz(mu=np.zeros(7), sigma=np.eye(7)), r"mu is float64\[7\]; must be floating point \[6\]"),
    "a covariance that is not square": (
        npz(mu=MU, sigma=SIGMA[:, :5]),
        r"sigma is float64\[6, 5\]; must be floating point \[6, 6\]",
    ),
    "a covariance that is not symmetric": (npz(mu=MU, sigma=SIGMA + np.eye(6, k=1)), "sigma is not symmetric"),
    "no covariance": (npz(mu=MU), "has no sigma for its mu"),
    "no mean": (npz(mu=MU, sigma=SIGMA, sigma_s=SIGMA_S), "has no mu_s for its sigma_s"),
    "values that are not finite": (npz(mu=MU, sigma=SIGMA * np.nan), "sigma has values that are not finite"),
    "integers": (npz(mu=MU.astype(int), sigma=SIGMA), "mu is int64"),
    "floating-point images": (npz(arr_0=IMAGES / 255), r"arr_0 is float64\[80, 8, 8, 1\]; must be images, uint8"),
    "images without channels": (npz(arr_0=IMAGES[..., 0]), r"arr_0 is uint8\[80, 8, 8\]; must be images"),
    "colour images": (npz(arr_0=IMAGES.repeat(3, -1)), "arr_0 has images of 3 channels, and samples have 1"),
    "no images": (npz(arr_0=IMAGES[:0]), r"arr_0 is uint8\[0, 8, 8, 1\]"),
    "pickled statistics": (npz(mu=np.array([Trap()] * 6), sigma=SIGMA), r"mu is object\[6\]"),
    "pickled images": (npz(arr_0=np.array([Trap()], object)), r"arr_0 is object\[1\]"),
    "8 GiB": (archive(arr_0=header((8 * GIBI // 64, 8, 8, 1))), "ends early"),
    "8 GiB, compressed": (archive(zipfile.ZIP_DEFLATED, arr_0=header((8 * GIBI // 64, 8, 8, 1))), "ends early"),
    "3 GiB, in the directory": (declaring(3 * GIBI + 128, header((3 * GIBI // 64, 8, 8, 1))), "is not an .npz file"),
    "8 GiB of statistics": (archive(mu=header((GIBI,), "<f8"), sigma=b""), r"mu is float64\[1073741824\]"),
    "a huge shape": (archive(arr_0=header((2**62, 2**62, 8, 1))), "ends early"),
    "a negative shape": (archive(arr_0=header((-1, 8, 8, 1))), "is not an .npz file, or is damaged"),
    "an array without a header": (archive(arr_0=b"x" * 100), "is not an .npz file, or is damaged"),
}


@pytest.mark.parametrize("content,message", BAD.values(), ids=BAD)
def test_other_files_are_refused_in_one_line(tmp_path, trained, content, message):
    path = tmp_path / "reference.npz"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as caught:
        open_real_images(trained, str(path))
    text = str(caught.value)
    assert text.startswith(f"--reference={path}: ") and text.isprintable() and len(text) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_any_changed_byte_is_refused_in_one_line_or_changes_a_value(tmp_path, trained):
    whole, path = npz(**STATISTICS), tmp_path / "reference.npz"
    for place in RNG.integers(0, len(whole), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            open_real_images(trained, str(path))
        except UserError as error:
            assert str(error).startswith(f"--reference={path}: ")


def test_missing_files_folders_and_pickles_are_refused(tmp_path, trained):
    (tmp_path / "folder.npz").mkdir()
    for name, message in (
        ("gone.npz", "cannot be read: No such file"),
        ("folder.npz", "cannot be read: Is a directory"),
        ("img512.pkl", "pickles are not supported, as reading one can run its code; pass an .npz file"),
    ):
        with pytest.raises(UserError, match=f"--reference=.*{name}: {message}"):
            open_real_images(trained, str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="Not a regular file"):
        open_real_images(trained, str(tmp_path / "pipe.npz"))
