"""Random flags of the verbs that sample from a trained run: each is accepted, or refused in one line."""

import contextlib
import io
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from diffjax import cli
from diffjax.cli.settings import SETTINGS
from tests.fuzzing import cases
from tests.test_configs_fuzz import named

NUMBERS = ("0", "1", "-1", "2", "0.5", "1e30", "nan", "inf", "-inf", "", "x", "1,2", "99999999999999999999")
WORDS = ("", "nonsense", "ddim", "trailing", "clip", "none", "test", "train", "/nowhere/at/all", "karras(rho=0)")


def flags(verb: str) -> st.SearchStrategy[list[str]]:
    """Returns a strategy for one to three flags, some with bad values."""
    from diffjax.cli.settings import clipping, samplers, time_grids

    axes = {"sampler": samplers, "grid": time_grids, "threshold": clipping}
    numbers = [name for name in SETTINGS if name not in axes] + ["seed", "batch_size", "num", "checkpoint"]
    others = {
        "sample": ["label", "strength", "resample_steps", "interpolate", "keep_fraction", "best_of"],
        "sweep": [],
        "evaluate": ["ode_steps", "terms", "exact_trace", "samples"],
    }
    words = {"sample": ["image", "mask", "prompt"], "sweep": ["metrics"], "evaluate": ["split", "reference", "grid"]}

    def written(name, values):
        return st.sampled_from(values).map(lambda value: f"--{name}={value}")

    each = [written(name, NUMBERS) for name in numbers + others[verb]]
    each += [written(name, WORDS) for name in words[verb]]
    each += [named(module).map(lambda value, name=name: f"--{name}={value}") for name, module in axes.items()]
    return st.lists(st.one_of(each), min_size=1, max_size=3, unique_by=lambda flag: flag.split("=")[0])


BASES = {
    "sample": ["--out=OUT/x.png", "--num=2", "--batch_size=2"],
    "sweep": ["--num=2", "--batch_size=2", "--steps=2", "--metrics=fd_pixels"],
    "evaluate": ["--num=8", "--batch_size=2", "--steps=2", "--metrics=fd_pixels"],
}


def check(verb: str, chosen: list[str], workdir, folder) -> None:
    """Asserts that a verb succeeds without an error, or fails with one line that names a flag."""
    base = [flag.replace("OUT", str(folder)) for flag in BASES[verb]]
    argv = ["launch.py", verb, f"--workdir={workdir}", *base, *chosen]
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = cli.main(argv)
    bars = ("image/s]", "batch/s]", "s/image]", "s/batch]", "warning: ", "note: ")
    lines = [line for line in re.split(r"[\r\n]+", err.getvalue()) if line.strip() and not any(b in line for b in bars)]
    if code:
        assert code == 2, chosen
        assert len(lines) == 1 and lines[0].startswith("error: "), (chosen, lines)
        names = [re.split("[_=]", flag.lstrip("-"))[0] for flag in chosen]
        values = [flag.split("=", 1)[1] for flag in chosen]
        assert any(n in lines[0] for n in names) or any(v and v in lines[0] for v in values), (chosen, lines)
    else:
        assert not any(line.startswith("error") for line in lines), (chosen, lines)


@pytest.mark.parametrize(
    ("verb", "chosen"),
    [
        ("sample", "--guidance=nan"),
        ("sample", "--guidance=inf"),
        ("sample", "--eta=-1"),
        ("sample", "--steps=0"),
        ("sample", "--steps=99999999999999999999"),
        ("sample", "--num=0"),
        ("sample", "--num=99999999999999999999"),
        ("sample", "--label=10"),
        ("sample", "--label=-1"),
        ("sample", "--grid=nonsense"),
        ("sample", "--out=/proc/nowhere/x.png"),
        ("sample", "--guidance_rescale=2"),
        ("sample", "--threshold=dynamic(percentile=101)"),
        ("sample", "--image=test:0 --strength=nan"),
        ("sample", "--seed=-1"),
        ("sample", "--sampler="),
        ("sweep", "--steps="),
        ("sweep", "--eta=nan"),
        ("sweep", "--guidance=1,nan"),
        ("sweep", "--num=0"),
        ("sweep", "--metrics="),
        ("evaluate", "--num=1"),
        pytest.param("evaluate", "--num=2", marks=pytest.mark.slow),
        ("evaluate", "--metrics=nll --terms=-1"),
        ("evaluate", "--metrics=nll --steps=0"),
        ("evaluate", "--metrics="),
        ("evaluate", "--split="),
        pytest.param("evaluate", "--metrics=precision_recall_pixels,kd_pixels", marks=pytest.mark.slow),
        pytest.param("evaluate", "--metrics=cas,classifier_accuracy", marks=pytest.mark.slow),
        ("evaluate", "--metrics=caption_accuracy"),
        pytest.param("sample", "--guidance=1e30", marks=pytest.mark.slow),
        ("evaluate", "--reference=nowhere"),
    ],
)
def test_bad_flags_are_obeyed_or_refused(verb, chosen, workdir, tmp_path):
    check(verb, chosen.split(), workdir, tmp_path)


def fuzz(verb: str, count: int, workdir, folder) -> None:
    @cases(count)
    @hypothesis.given(flags(verb))
    def case(chosen):
        check(verb, chosen, workdir, folder)

    case()


@pytest.mark.slow
@pytest.mark.parametrize("verb", BASES)
def test_random_flags_are_obeyed_or_refused(verb, workdir, tmp_path):
    fuzz(verb, 30, workdir, tmp_path)
