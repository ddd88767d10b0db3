"""Muon, Adafactor and SGD against PyTorch's."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.training.optimization import make_optimizer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

RATE, DECAY = 0.02, 0.1
SETTINGS = {"clip_norm": 0.0, "weight_decay": DECAY, "beta1": 0.9, "beta2": 0.99}
CASES = {
    # PyTorch iterates in bfloat16, and does not correct the bias of the momentum, which the first step does not show
    "muon": (
        lambda w: torch.optim.Muon([w], lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        1,
        0.05,
    ),
    "adafactor(parameter_scale=True, min_size=2)": (
        lambda w: torch.optim.Adafactor([w], lr=RATE, weight_decay=0.0, eps=(1e-15, 1e-3)),
        3,
        1e-3,
    ),
    "sgd(momentum=0.8, nesterov=True)": (lambda w: torch.optim.SGD([w], lr=RATE, momentum=0.8, nesterov=True), 3, 1e-5),
}


@pytest.mark.parametrize("name", CASES)
def test_the_updates_are_those_of_pytorch(name):
    make, steps, rtol = CASES[name]
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 4)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start.T.copy()))  # [out, in]
    torch_optimizer = make(theirs)
    ours = make_optimizer(SETTINGS | {"optimizer": name, "weight_decay": DECAY * (name == "muon")}, lambda step: RATE)
    params = {"kernel": jnp.asarray(start)}
    state, update = ours.init(params), jax.jit(ours.update)
    for _ in range(steps):
        gradient = rng.normal(size=(6, 4)).astype(np.float32)
        before, their_before = params["kernel"], theirs.detach().numpy().T.copy()
        updates, state = update({"kernel": jnp.asarray(gradient)}, state, params)
        params = {"kernel": before + updates["kernel"]}
        theirs.grad = torch.tensor(gradient.T.copy())
        torch_optimizer.step()
        expected = theirs.detach().numpy().T - their_before
        np.testing.assert_allclose(updates["kernel"], expected, atol=rtol * np.abs(expected).max())
