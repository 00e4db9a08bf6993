"""FLOPs and messages: counted by hand, on small texts and small programs of this machine's compiler."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.hardware import flops, programs
from jaxdiff.hardware.chips import V5E, chip

TEXT = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%test (state: (s32[], bf16[4,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %state = (s32[], bf16[4,16]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT, metadata={op_name="jit(f)/while/cond/lt"}
}

%whoever (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]) parameter(0)
  ROOT %more = pred[] custom-call(%state), custom_call_target="ask"
}

%fused (a: bf16[4,16], b: bf16[16,16]) -> bf16[4,16] {
  %a = bf16[4,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = bf16[16,16]{1,0} parameter(1)
  ROOT %c = bf16[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], bf16[4,16])) -> (s32[], bf16[4,16]) {
  %state = (s32[], /*index=1*/bf16[4,16]) parameter(0)
  %x = bf16[4,16]{1,0} get-tuple-element(%state), index=1
  %part = bf16[2,16] slice(%x), slice={[0:2], [0:16]}
  %start = ((bf16[2,16]), bf16[16,16], u32[]) all-gather-start(%part), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %done = bf16[16,16]{1,0} all-gather-done(%start)
  %y = bf16[4,16]{1,0} fusion(%x, %done), kind=kOutput, calls=%fused
  ROOT %next = (s32[], bf16[4,16]) tuple(%state, %y)
}

%turn (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]) parameter(0)
  %v = f32[8] get-tuple-element(%state), index=1
  %w = f32[8] collective-permute(%v), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[], f32[8]) tuple(%state, %w)
}

%scattered (p: f32[16]) -> f32[2] {
  %p = f32[16] parameter(0)
  ROOT %s = f32[2] reduce-scatter(%p), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

ENTRY %main (p0: f32[3,5], p1: f32[]) -> f32[] {
  %p0 = f32[3,5]{1,0} parameter(0), sharding={replicated}
  %p1 = f32[] parameter(1)
  %both = (f32[3,5]{1,0}, f32[]) all-reduce(%p0, %p1), replica_groups=mesh['data'=4,'fsdp'=2] {'data'}, to_apply=%add
  %t0 = (s32[], bf16[4,16]) tuple(%p1, %p0)
  %loop = (s32[], bf16[4,16]) while(%t0), condition=%test, body=%body
  %told = (s32[], bf16[4,16]) while(%t0), condition=%whoever, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %t1 = (s32[], f32[8]) tuple(%p1, %p1)
  %endless = (s32[], f32[8]) while(%t1), condition=%whoever, body=%turn
  %f16 = f32[16] parameter(2)
  %later = ((f32[16]), f32[2], u32[]) async-start(%f16), calls=%scattered
  %there = f32[2] async-done(%later)
  ROOT %out = f32[] conditional(%p1, %p1, %p1), true_computation=%add, false_computation=%add
}
"""


def test_messages_of_a_text_are_those_counted_by_hand():
    found = programs.read(TEXT)
    gathered = 8 * (3 + 5) * (2 * 16 * 2) * 8 / 8  # turns of both loops x bytes that a device gives x 8 devices
    assert found.messages == {
        "all-gather": programs.Message(8, gathered, gathered * 7 / 8),
        "all-reduce": programs.Message(1, 64, 2 * 3 / 4 * 64),  # 15 + 1 float32, over the four of "data"
        "collective-permute": programs.Message(1, 32, 32),
        "reduce-scatter": programs.Message(1, 64, 7 / 8 * 64),
    }
    assert found.unknown == 1
    assert found.flops == {"bf16": 8 * 2 * 4 * 16 * 16} 


MEMORY = """\
HloModule jit_g, is_scheduled=true

%piece (stack: f32[10,4], i: s32[], row: f32[1,4]) -> f32[10,4] {
  %stack = f32[10,4] parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %row = f32[1,4] parameter(2)
  %old = f32[1,4] dynamic-slice(%stack, %i, %i), dynamic_slice_sizes={1,4}
  %new = f32[1,4] add(%old, %row)
  ROOT %updated = f32[10,4] dynamic-update-slice(%stack, %new, %i, %i)
}

ENTRY %main (a: f32[10,4], i: s32[], row: f32[1,4]) -> f32[10,4] {
  %a = f32[10,4] parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %row = f32[1,4] parameter(2)
  %fast = (f32[1,4]{1,0:S(1)}, f32[1,4], u32[]{:S(2)}) copy-start(%row)
  %there = f32[1,4]{1,0:S(1)} copy-done(%fast)
  %again = f32[1,4]{1,0:S(1)} negate(%there)
  %back = f32[1,4] exponential(%again)
  %some = f32[2,4] slice(%a), slice={[0:2], [0:4]}
  ROOT %out = f32[10,4] fusion(%a, %i, %back), kind=kLoop, calls=%piece
}
"""


def test_traffic_is_what_goes_between_the_cores_and_the_main_memory():
    row = 16  # bytes of f32[1,4]
    # to VMEM, nothing inside of it, back out, a slice read and written, and of a fusion two rows read and one written
    assert programs.read(MEMORY).traffic == row + 0 + row + 2 * 2 * row + 3 * row


def test_traffic_of_a_product_is_its_operands_and_result():
    a, b = jnp.ones((64, 32)), jnp.ones((32, 48))
    compiled = jax.jit(jnp.matmul).lower(a, b).compile()
    wanted = 4 * (64 * 32 + 32 * 48 + 64 * 48)
    assert programs.read(compiled.as_text()).traffic == wanted == compiled.cost_analysis()["bytes accessed"]


@pytest.mark.parametrize(("groups", "size"), [
    ("replica_groups=[2,4]<=[8]", 4), ("replica_groups=[4,2]<=[2,4]T(1,0)", 2), ("replica_groups={{0,3,6},{1,4,7}}", 3),
    ("replica_groups={}", 8), ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
    ("replica_groups=mesh['a'=8], device_ids=([2,4]T(1,0)) {'a':(2)4}", 4),
])  # fmt: skip
def test_every_way_of_writing_groups_is_read(groups, size):
    text = TEXT.replace("replica_groups=mesh['data'=4,'fsdp'=2] {'data'}", groups)
    assert programs.read(text).messages["all-reduce"].sent == pytest.approx(2 * (size - 1) / size * 64)


def test_a_text_that_is_no_module_is_refused_in_a_line():
    with pytest.raises(ValueError, match="no ENTRY"):
        programs.read("banana")


def pairs(size, window, out, stride, low, dilation, window_dilation):
    """Places of output and window that meet a number of the input, one by one."""
    spread = {i * dilation for i in range(size)}
    return sum(o * stride + k * window_dilation - low in spread for o, k in itertools.product(range(out), range(window)))


def test_positions_are_those_counted_one_by_one():
    every = itertools.product((1, 4, 7), (1, 3, 4), (6,), (1, 2), (-1, 0, 2), (1, 2, 3), (1, 2))
    for given in every:
        assert programs.positions(*given) == pairs(*given), given


def conv(x, w, stride=2):
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def products(fn, *args):
    """FLOPs of the compiled program."""
    return sum(programs.read(jax.jit(fn).lower(*args).compile().as_text()).flops.values())


def test_products_of_compiled_programs_are_those_counted_by_hand():
    x, w = jnp.ones((2, 9, 9, 4)), jnp.ones((3, 3, 4, 6))
    rows = pairs(9, 3, 5, 2, 1, 1, 1)  # of one dimension, without the padding
    once = 2 * 2 * rows**2 * 4 * 6
    assert products(conv, x, w) == once
    # forward, and a product for each gradient, one with a dilated input, one with a dilated window
    assert products(jax.grad(lambda w, x: (conv(x, w) ** 2).sum(), (0, 1)), w, x) == 3 * once
    assert flops.count(conv, x, w) == 2 * 2 * 5**2 * 3**2 * 4 * 6  # as written: with the padding
    a, b = jnp.ones((2, 8, 3)), jnp.ones((2, 7, 3))
    matmul, batched = lambda a, b: a[0] @ b[0].T, lambda a, b: jnp.einsum("bqd,bkd->bqk", a, b)
    assert products(matmul, a, b) == flops.count(matmul, a, b) == 2 * 8 * 7 * 3
    assert products(batched, a, b) == flops.count(batched, a, b) == 2 * 2 * 8 * 7 * 3


def test_a_loop_counts_as_often_as_it_turns():
    x = jnp.ones((16, 16))
    scan = lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=7)[0]
    found = programs.read(jax.jit(scan).lower(x).compile().as_text())
    assert sum(found.flops.values()) == 7 * 2 * 16**3 and found.unknown == 0


def test_a_gradient_over_four_devices_is_one_message_of_the_gradients_size():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    w = jax.ShapeDtypeStruct((32, 48), "float32", sharding=whole)
    x = jax.ShapeDtypeStruct((64, 32), "float32", sharding=split)
    fn = jax.jit(jax.grad(lambda w, x: (jnp.tanh(x @ w) ** 2).mean()), out_shardings=whole)
    found = programs.read(fn.lower(w, x).compile().as_text())
    assert set(found.messages) == {"all-reduce"}
    assert found.messages["all-reduce"].bytes == 4 * 32 * 48 and found.messages["all-reduce"].sent == 6 * 32 * 48
    assert sum(found.flops.values()) == flops.count(jax.grad(lambda w, x: (jnp.tanh(x @ w) ** 2).mean()), w, x) / 4


def test_chips_have_their_published_peaks():
    assert chip("TPU v5 lite") is V5E and V5E.peak("float32") == V5E.peak("bfloat16") == 197e12
    h100 = chip("NVIDIA H100 80GB HBM3")
    assert h100.peak("float32") < h100.peak("bfloat16") == 989e12
    assert chip("cpu") is None and chip("NVIDIA H100 PCIe") is None
