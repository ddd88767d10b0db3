"""Bytes of the collectives in the HLO of programs."""

import functools
import json

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax import cli, models
from diffjax.benchmark.random_inputs import batch_shapes
from diffjax.cli.layout_plan import layouts
from diffjax.cluster import cost_model
from diffjax.cluster.collectives import Collective, bytes_by_kind, collectives
from diffjax.cluster.cost_model import MACHINES, Machine
from diffjax.training.compiled_step import lower_step, step_flops
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


BOTH = 2 * (64 * 32 + 32 * 16)  # bytes of two matrices in bfloat16
GAIN = 4 * 16  # bytes of a vector in float32


@pytest.mark.parametrize(
    ("fsdp", "expected"),
    [
        (1, {("all-reduce", tuple(range(8))): BOTH + GAIN}),
        (
            4,
            {
                ("all-gather", (0, 1, 2, 3)): BOTH,
                ("reduce-scatter", (0, 1, 2, 3)): BOTH,
                ("all-reduce", (0, 4)): BOTH / 4,
                ("all-reduce", tuple(range(8))): GAIN,
            },
        ),
    ],
)
def test_half_precision_and_scattered_sums_of_a_program_for_cpus(fsdp, expected):
    """Two layers in bfloat16 and a gain in float32, with float32 parameters; the layers' are sharded."""
    mesh = Mesh(np.array(jax.devices()).reshape(-1, fsdp), ("data", "fsdp"))
    placed = [NamedSharding(mesh, spec) for spec in (P("fsdp"), P(None, "fsdp"), P())]

    def loss(params, x):
        v, w, gain = params
        h = jnp.tanh(x @ v.astype(jnp.bfloat16)) @ w.astype(jnp.bfloat16)
        return ((h.astype(jnp.float32) * gain[None]) ** 2).sum()

    step = jax.jit(
        lambda params, x: jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params, x)),
        in_shardings=(placed, NamedSharding(mesh, P(("data", "fsdp")))),
        out_shardings=placed,
    )
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, 16), (16,))]
    compiled = step.lower(params, jax.ShapeDtypeStruct((16, 64), jnp.bfloat16)).compile()
    sizes = {}
    for kind, size, group, times in collectives(compiled.as_text() or ""):
        sizes[kind, group] = sizes.get((kind, group), 0) + size * times
    assert sizes == expected


SUMS = """HloModule m, num_partitions=4

%part (a: f32[8], i: s32[]) -> f32[2] {
  %a = f32[8]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = f32[2]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={2}
}

ENTRY %main (p: f32[8], n: s32[]) -> (f32[2], f32[2], f32[8]) {
  %p = f32[8]{0} parameter(0)
  %n = s32[] parameter(1)
  %sums = (f32[8]{0}, f32[8]{0}) all-reduce(%p, %p), replica_groups={}, to_apply=%sum
  %first = f32[8]{0} get-tuple-element(%sums), index=0
  %second = f32[8]{0} get-tuple-element(%sums), index=1
  %fusion = f32[2]{0} fusion(%first, %n), kind=kLoop, calls=%part
  %other = f32[2]{0} dynamic-slice(%second, %n), dynamic_slice_sizes={2}
  ROOT %all = (f32[2]{0}, f32[2]{0}, f32[8]{0}) tuple(%fusion, %other, %second)
}
"""


def test_a_sum_is_scattered_only_if_no_device_uses_all_of_it():
    """The whole of the second sum is a result; the group of all devices is not listed."""
    everyone = (0, 1, 2, 3)
    assert collectives(SUMS) == [
        Collective("reduce-scatter", 32, everyone, 1),
        Collective("all-reduce", 32, everyone, 1),
    ]
    halves = SUMS.replace("num_partitions=4", "num_partitions=2")  # each of two devices takes a quarter
    assert collectives(halves) == [Collective("all-reduce", 64, (0, 1), 1)]


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
    ],
)
def test_groups_of_devices_in_hlo(groups, first):
    line = f"  %g = f32[8]{{0}} all-gather(%q), {groups}, dimensions={{0}}, to_apply=%sum"
    (found,) = collectives(f"ENTRY %main (q: f32[4]) -> f32[8] {{\n  %q = f32[4]{{0}} parameter(0)\n{line}\n}}\n")
    assert found == Collective("all-gather", 32, first, 1)


def test_estimated_times_of_rings_within_and_between_hosts():
    machine = Machine(tflops=1, memory=1, link=100, network=10, devices=4)
    gigabyte = 10**9
    cases = {  # bytes of one link per GB of the array, over its bandwidth
        Collective("all-reduce", gigabyte, (0, 1, 2, 3), 1): 2 * 3 / 4 / 100,
        Collective("all-gather", gigabyte, (0, 4), 3): 3 * 1 / 2 / 10,
        Collective("reduce-scatter", gigabyte, tuple(range(8)), 1): 7 / 8 / (4 * 10),  # four links between the hosts
        Collective("all-to-all", gigabyte, (2, 3, 4, 5), 1): 3 / 4 / 10,
        Collective("collective-permute", gigabyte, (3, 4), 1): 1 / 10,
        Collective("all-reduce", gigabyte, (0,), 1): 0.0,
    }
    for collective, expected in cases.items():
        assert cost_model.seconds(collective, machine) == pytest.approx(expected), collective


@pytest.mark.parametrize("is_transformer", [False, True])
def test_layouts_divide_any_number_of_devices(is_transformer):
    for count in range(1, 65):
        sizes = layouts(count, MACHINES["h100"], is_transformer=is_transformer)
        assert (1, 1) in sizes and (count, 1) in sizes and len(sizes) == len(set(sizes))
        assert all(count % (fsdp * tensor) == 0 for fsdp, tensor in sizes)
        assert {tensor for _, tensor in sizes} == (
            {size for size in (1, 2, 4) if count % size == 0} if is_transformer else {1}
        )
    sizes = layouts(256, MACHINES["h100"], is_transformer=is_transformer)
    assert {fsdp for fsdp, tensor in sizes if tensor == 1} == {1, 8, 64, 256}
    assert {fsdp for fsdp, tensor in sizes if tensor == 4} == ({1, 2, 16, 64} if is_transformer else set())


@pytest.mark.parametrize(
    ("group", "axes"),
    [
        ((0, 1, 2, 3), ("tensor",)),
        ((1, 5), ("fsdp",)),
        ((3, 11), ("data",)),
        ((0, 4, 8, 12), ("data", "fsdp")),
        (tuple(range(16)), ("data", "fsdp", "tensor")),
        ((7,), ()),
    ],
)
def test_axes_of_a_mesh_along_which_devices_exchange(group, axes):
    """Devices of a mesh of 2 x 2 x 4 are numbered along the last axis first."""
    collective = Collective("all-reduce", 8, group, 1)
    assert cost_model.mesh_axes(collective, {"data": 2, "fsdp": 2, "tensor": 4}) == axes


def test_operations_of_a_step_do_not_depend_on_the_parts_of_a_batch():
    flops = []
    for parts in (1, 2):
        config = tiny.config("vae", train__accumulate=parts)
        model, devices = models.build(config, ImageSpec(8, 1, 10)), Devices.create(num_devices=1)
        shapes = batch_shapes(config, ImageSpec(8, 1, 10), model, 16)
        flops.append(step_flops(config, lower_step(config, model, devices, shapes, 64)))
    assert flops[1] == pytest.approx(flops[0], rel=0.1)


@pytest.mark.slow
def test_a_plan_names_the_fastest_layout_that_fits(tmp_path, capsys):
    config = tiny.write(tmp_path / "config.py", "vae")
    out = tmp_path / "plan.json"
    assert cli.main(["launch.py", "benchmark", f"--config={config}", "--plan=8", f"--out={out}"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["fsdp"], row["tensor"]) for row in rows] == [(1, 1), (8, 1)]
    assert rows[1]["state GB"] < rows[0]["state GB"]
    assert all(row["between hosts GB"] == 0 and row["step ms"] > row["exchange ms"] > 0 for row in rows)
    assert [name for name in rows[0] if name.startswith(("data", "fsdp "))] == ["data GB", "fsdp GB"]
    assert rows[0]["fsdp GB"] == rows[1]["data GB"] == 0
    assert all(row["data GB"] + row["fsdp GB"] == pytest.approx(row["within a host GB"]) for row in rows)
    best = min(rows, key=lambda row: row["step ms"])
    assert f"fastest that fits: --config.parallel.fsdp={best['fsdp']} " in capsys.readouterr().out
    errors = {"--machine=h100": "requires --plan", "--plan=8 --machine=b9": "h100", "--plan=7": "a multiple of 7"}
    for flags, message in errors.items():
        assert cli.main(["launch.py", "benchmark", f"--config={config}", *flags.split()]) == 2
        assert message in capsys.readouterr().err


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
    assert sizes["all-reduce" if fsdp == 1 else "reduce-scatter"] == pytest.approx(gradients, rel=0.1)
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
