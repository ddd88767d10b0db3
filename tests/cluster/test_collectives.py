"""Bytes of the collectives in the HLO of programs."""

import functools

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from diffjax import cli, models
from diffjax.cluster.collectives import bytes_by_kind
from diffjax.training.compiled_step import lower_step
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec
from tests import tiny


def measured_bytes(function, *shapes):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = jax.shard_map(function, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    inputs = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    return bytes_by_kind(jax.jit(spread).lower(*inputs).compile().as_text())


def test_bytes_of_a_sum_over_devices():
    """Each of eight devices has [2, 5] float32 and receives the sum."""
    assert measured_bytes(functools.partial(lax.psum, axis_name="x"), ((16, 5), jnp.float32)) == {
        "all-reduce": 2 * 5 * 4
    }


def test_several_kinds_and_types_of_one_program():
    def exchange(x, y):
        gathered = lax.all_gather(x, "x", tiled=True)  # [16, 3] int8
        scattered = lax.psum_scatter(y, "x", tiled=True)  # [32] float32 before
        shifted = lax.ppermute(y, "x", [(i, (i + 1) % 8) for i in range(8)])  # [32] float32
        return gathered.sum() + scattered.sum() + shifted.sum()

    shapes = ((16, 3), jnp.int8), ((256,), jnp.float32)
    expected = {"all-gather": 16 * 3, "reduce-scatter": 32 * 4, "collective-permute": 32 * 4}
    assert measured_bytes(exchange, *shapes) == expected


def test_collectives_in_a_loop_count_once_per_iteration():
    def loop(x):
        return lax.scan(lambda total, _: (lax.psum(jnp.sin(total), "x"), None), x, None, length=7)[0]

    assert measured_bytes(loop, ((8, 6), jnp.float32)) == {"all-reduce": 7 * 6 * 4}


def test_one_device_does_not_communicate():
    assert bytes_by_kind(jax.jit(lambda x: x * 2).lower(jnp.ones(3)).compile().as_text()) == {}


HLO = """HloModule m

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %s = f32[] add(%a, %a)
}

ENTRY %main (p: bf16[8,4], q: f32[2]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = f32[2]{0:T(128)} parameter(1)
  %started = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %done = bf16[32,4]{1,0} all-gather-done(%started)
  %both = (f32[2]{0}, f32[2]{0}) all-reduce(%q, %q), replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %copy = bf16[32,4]{1,0} copy(%done)
}
"""


def test_asynchronous_collectives_and_tuples_in_hlo_of_accelerators():
    assert bytes_by_kind(HLO) == {"all-gather": 32 * 4 * 2, "all-reduce": 2 * 2 * 4}


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 8])
def test_a_step_communicates_little_more_than_its_gradients(fsdp):
    """Batches, optimiser state and EMA are not communicated; sharded parameters are gathered."""
    config = tiny.config("vae", model__residual_channels=32)
    system, devices = models.build(config, ImageSpec(8, 1, 10)), Devices.create(num_devices=8, fsdp=fsdp)
    compiled = lower_step(config, system, devices, jax.eval_shape(lambda: tiny.batch(16)), 64).compile()
    shapes = system.variable_shapes["params"]
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    sizes = bytes_by_kind(compiled.as_text())
    assert sizes["all-reduce"] == pytest.approx(gradients, rel=0.1)
    if fsdp == 1:
        assert sizes.keys() == {"all-reduce"}
    else:
        assert sum(sizes.values()) <= 3.2 * gradients


@pytest.mark.slow
def test_the_table_of_the_command_line(tmp_path, capsys):
    config = tiny.write(tmp_path / "config.py", "vae")
    assert cli.main(["launch.py", "benchmark", f"--config={config}", "--communication=2,8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("MB per step:") and len(lines) == 4
    assert lines[1].split()[:3] == ["devices", "batch", "all-reduce"]
    assert [line.split()[0] for line in lines[2:]] == ["2", "8"]
    assert cli.main(["launch.py", "benchmark", f"--config={config}", "--communication=2,x"]) == 2
