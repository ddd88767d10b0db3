"""Parsing and lookup of named choices."""

import types

import pytest

from diffjax import registry
from diffjax.diffusion import loss_weighting, parameterizations, time_grids
from diffjax.errors import UserError
from diffjax.registry import lookup


@pytest.mark.parametrize(
    ("module", "text", "name", "values", "options"),
    [
        (loss_weighting, "min_snr", "min_snr", (), {}),
        (loss_weighting, "min_snr()", "min_snr", (), {}),
        (loss_weighting, "  min_snr( gamma = 1.5 ) ", "min_snr", (), {"gamma": 1.5}),
        (loss_weighting, "p2(gamma=-0.5, k=2)", "p2", (), {"gamma": -0.5, "k": 2}),
        (loss_weighting, "p2(k=1e-3)", "p2", (), {"k": 0.001}),
        (time_grids, "karras(rho=+5)", "karras", (), {"rho": 5}),
        (time_grids, "sections(90, 60)", "sections", (90, 60), {}),
        (time_grids, "times(1000, 0.5, -3)", "times", (1000, 0.5, -3), {}),
        (time_grids, "sections(90,)", "sections", (90,), {}),
    ],
)
def test_choices_are_parsed(module, text, name, values, options):
    choice = lookup("axis", module, text)
    assert choice == (name, getattr(module, name), values, options)


WRITE = "write a name, or name(option=number, ...)"
BAD = {
    "": WRITE,
    "   ": WRITE,
    "min snr": WRITE,
    "min_snr(": WRITE,
    "min_snr)": WRITE,
    "min_snr((": WRITE,
    "min_snr; p2": WRITE,
    "min_snr\np2": WRITE,
    "min_snr, p2": WRITE,
    "min_snr\0": WRITE,
    "5": WRITE,
    "'min_snr'": WRITE,
    "weighting.min_snr": WRITE,
    "min_snr[0]": WRITE,
    "min_snr()(gamma=1)": WRITE,
    "lambda: 0": WRITE,
    "(lambda: 0)()": WRITE,
    "__import__('os')": WRITE,
    "__import__('os').getpid()": WRITE,
    "__import__": "unknown axis '__import__'",
    "_snr": "unknown axis '_snr': did you mean 'min_snr' or 'truncated_snr'?",
    "Array": "unknown axis 'Array'",  # imported by the module
    "min_snr(gamma='3')": WRITE,
    "min_snr(gamma=b'3')": WRITE,
    "min_snr(gamma=None)": WRITE,
    "min_snr(gamma=2j)": WRITE,
    "min_snr(gamma=[1])": WRITE,
    "min_snr(gamma=1 + 1)": WRITE,
    "min_snr(gamma=2 ** 9)": WRITE,
    "min_snr(gamma=nan)": WRITE,
    "min_snr(gamma=p2(k=1))": WRITE,
    "min_snr(gamma=__import__('os').getpid())": WRITE,
    "min_snr(gamma:=3)": WRITE,
    "min_snr(gamma)": WRITE,
    "min_snr(*[1])": WRITE,
    "min_snr(**{'gamma': 1})": WRITE,
    "min_snr(**5, gamma=3)": "",
    "min_snr(gamma={[]: 1})": WRITE,
    "min_snr(gamma={{1}})": WRITE,
    "min_snr(gamma=1, gamma=2)": "",
    "min_snr" + "(" * 500: WRITE,
    "-" * 20_000 + "1": "",
    "min_snr(5)": "min_snr(option=number, ...)",
    "min_snr(5, gamma=5)": "min_snr(option=number, ...)",
    "min-snr": WRITE,
    "minsnr": "unknown axis 'minsnr': did you mean 'min_snr'?",
    "MIN_SNR": "unknown axis 'MIN_SNR'",
    "zzz": "choose from edm, flow, learned, min_snr, p2, simple, snr, truncated_snr",
    "min_snr(gama=3)": "axis 'min_snr' takes no 'gama'; it takes gamma",
    "p2(sigma=3)": "it takes gamma, k",
    "snr(gamma=3)": "axis 'snr' takes no 'gamma'; it takes no options",
    "min_snr(noise=3)": "takes no 'noise'; it takes gamma",  # an argument that is not an option
}


@pytest.mark.parametrize("text", list(BAD), ids=lambda text: repr(text)[:40])
def test_bad_text_is_refused_in_one_line(text):
    with pytest.raises(UserError) as error:
        lookup("axis", loss_weighting, text)
    assert BAD[text] in str(error.value)
    assert "axis" in str(error.value)
    assert "\n" not in str(error.value)


def test_text_is_not_evaluated():
    ran = []
    module = types.ModuleType("module")
    exec("def good(*, a=1): return a\ndef evil(): ran.append(1)", module.__dict__ | {"ran": ran}, module.__dict__)
    for function in (module.good, module.evil):
        function.__module__ = "module"
    for text in ("evil()", "good(a=evil())", "good(evil())"):
        try:
            lookup("axis", module, text)
        except UserError:
            continue
        assert text == "evil()"
    assert not ran


def test_injected_arguments_are_not_options():
    assert lookup("axis", parameterizations, "mu", injected=("schedule",)).name == "mu"
    with pytest.raises(UserError, match="takes no 'schedule'; it takes no options"):
        lookup("axis", parameterizations, "mu(schedule=1)", injected=("schedule",))
    assert lookup("axis", parameterizations, "mu(schedule=1)").options == {"schedule": 1}


def test_bind_passes_accepted_arguments_only():
    bound = lookup("axis", parameterizations, "mu", injected=("schedule",)).bind(schedule="s", variance="v")
    assert bound.func is parameterizations.mu
    assert bound.keywords == {"schedule": "s"}
    bound = lookup("axis", loss_weighting, "p2(k=2.5)").bind(schedule="s", noise="n")
    assert bound.keywords == {"k": 2.5}
    assert bound.args == ()


def test_choices_are_public_functions_of_the_module():
    assert set(registry.choices(loss_weighting)) == {
        "simple",
        "x0",
        "snr",
        "truncated_snr",
        "min_snr",
        "p2",
        "edm",
        "flow",
        "learned",
    }
    assert "log_snr_of" not in registry.choices(time_grids)  # imported
    assert registry.options(loss_weighting.p2) == {"gamma", "k"}
    assert registry.options(time_grids.sections) == set()
