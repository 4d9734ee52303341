"""The interpreter of PTX: what its instructions do, how lanes part and meet, what it refuses."""

import ctypes
import struct

import numpy as np
import pytest
from ptx import EmulationError, Memory, Program, tensor_cores

from tinydilate.gpu_tf32 import as_tf32

TEXT = """
.version 9.0
.target sm_80
.address_size 64
.visible .shared .align 4 .b8 line[32];
.visible .entry kernel(
    .param .u64 kernel_param_0,
    .param .u64 kernel_param_1,
    .param .u32 kernel_param_2
)
.maxntid 8, 1, 1
{
    .reg .pred %p<9>;
    ld.param.u64 %rd1, [kernel_param_0];  // the results: 8 bytes a lane
    cvta.to.global.u64 %rd1, %rd1;
    ld.param.u64 %rd2, [kernel_param_1];  // numbers: 8 bytes a lane
    ld.param.u32 %r1, [kernel_param_2];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mad.lo.s32 %r5, %r3, %r4, %r2;
    mul.wide.u32 %rd3, %r5, 8;
    add.s64 %rd1, %rd1, %rd3;
    add.s64 %rd2, %rd2, %rd3;
    BODY
$END:
    ret;
}
"""


@pytest.fixture
def memory():
    return Memory(2**16)


def run(memory, body, numbers=(0,) * 8, dtype="uint64", count=1, threads=8, argument=0):
    """What lanes 0, 1, ... write, each 8 bytes, when each is given one of the numbers."""
    given = np.asarray(numbers)
    there = memory.take(8 * max(1, len(given)))
    out = memory.take(8 * count * threads)
    for n, number in enumerate(given):
        ctypes.memmove(there + 8 * n, number.tobytes(), number.itemsize)
    words = struct.pack("<QQI4x", out, there, argument)
    program = Program(TEXT.replace("BODY", body))
    program.run(memory, (count, 1, 1), (threads, 1, 1), words)
    return np.frombuffer(ctypes.string_at(out, 8 * count * threads), dtype)


def floats(found):
    """Of each 8 bytes the first four, as a float32."""
    return found.view(np.float32)[::2]


def test_each_lane_of_each_block_writes_its_number(memory):
    body = "cvt.u64.u32 %rd4, %r5; st.global.u64 [%rd1], %rd4;"
    assert run(memory, body, count=3).tolist() == list(range(24))


INTEGERS = [  # instruction on a and b, numbers with their types, what comes out
    ("add.s32", "u32", 2**32 - 1, 2, 1),
    ("add.s64", "u64", 2**32 - 1, 2, 2**32 + 1),
    ("mul.lo.s32", "u32", 2**31, 3, 2**31),
    ("mul.hi.s64", "u64", 2**63, 2, 2**64 - 1),  # -2**63 * 2
    ("min.s32", "u32", 2**32 - 1, 5, 2**32 - 1),
    ("min.u32", "u32", 2**32 - 1, 5, 5),
    ("max.s64", "u64", 2**64 - 1, 5, 5),
    ("div.s64", "u64", 2**64 - 7, 2, 2**64 - 3),  # towards zero
    ("rem.s64", "u64", 2**64 - 7, 2, 2**64 - 1),
    ("div.u32", "u32", 2**32 - 7, 2, 2**31 - 4),
    ("rem.u32", "u32", 7, 4, 3),
    ("shr.s32", "u32", 2**31, 31, 2**32 - 1),
    ("shr.s32", "u32", 2**31, 99, 2**32 - 1),
    ("shr.u32", "u32", 2**31, 31, 1),
    ("shr.u32", "u32", 2**31, 32, 0),
    ("shl.b32", "u32", 3, 31, 2**31),
    ("shl.b32", "u32", 3, 32, 0),
    ("and.b32", "u32", 6, 3, 2),
    ("or.b32", "u32", 6, 3, 7),
    ("xor.b32", "u32", 6, 3, 5),
]


@pytest.mark.parametrize(("name", "kind", "a", "b", "wanted"), INTEGERS)
def test_whole_numbers(memory, name, kind, a, b, wanted):
    """As constants, and of a lane: an immediate is one number, a register an array of them."""
    r = "%r" if kind == "u32" else "%rd"
    second = "%r11" if name[:2] == "sh" else f"{r}11"
    body = f"""
        ld.global.{kind} {r}10, [%rd2];
        mov.{"u32" if second[:3] == "%r1" else kind} {second}, {b};
        {name} {r}12, {r}10, {second};
        {name} {r}13, {r}10, {b};
        sub.s{kind[1:]} {r}14, {r}12, {r}13;
        add.s{kind[1:]} {r}12, {r}12, {r}14;
        mov.u64 %rd20, 0;
        st.global.u64 [%rd1], %rd20;
        st.global.{kind} [%rd1], {r}12;
    """
    numbers = np.full(8, a, f"uint{kind[1:]}")
    assert run(memory, body, numbers).tolist() == [wanted] * 8


def test_the_lower_half_of_a_wide_register_with_its_sign(memory):
    body = "mov.u64 %rd10, 8589934591; cvt.s64.s32 %rd11, %rd10; st.global.u64 [%rd1], %rd11;"
    assert run(memory, body)[0] == 2**64 - 1


def test_a_product_of_twice_the_width(memory):
    body = """
        mov.u32 %r10, -1;
        mul.wide.u32 %rd10, %r10, 2;
        mul.wide.s32 %rd11, %r10, 2;
        sub.s64 %rd12, %rd10, %rd11;
        st.global.u64 [%rd1], %rd12;
    """
    assert run(memory, body)[0] == 2**33


COMPARISONS = {
    "lt": [True, False, False, False],
    "ge": [False, True, True, False],
    "ne": [True, False, True, False],
    "neu": [True, False, True, True],
    "equ": [False, True, False, True],
    "ltu": [True, False, False, True],
    "geu": [False, True, True, True],
    "leu": [True, True, False, True],
    "gtu": [False, False, True, True],
    "num": [True, True, True, False],
    "nan": [False, False, False, True],
}


@pytest.mark.parametrize("relation", COMPARISONS)
def test_comparisons_of_floats(memory, relation):
    body = f"""
        ld.global.f32 %f1, [%rd2];
        setp.{relation}.f32 %p1, %f1, 0f3F800000;
        selp.u64 %rd10, 1, 0, %p1;
        st.global.u64 [%rd1], %rd10;
    """
    numbers = np.array([0, 1, 2, np.nan] * 2, np.float32)
    assert run(memory, body, numbers).tolist() == COMPARISONS[relation] * 2


@pytest.mark.parametrize(("kind", "wanted"), [("s32", 1), ("u32", 0)])
def test_comparisons_with_and_without_a_sign(memory, kind, wanted):
    body = f"""
        mov.u32 %r10, -1;
        setp.lt.{kind} %p1, %r10, 3;
        selp.u64 %rd10, 1, 0, %p1;
        st.global.u64 [%rd1], %rd10;
    """
    assert run(memory, body)[0] == wanted


def test_floats_are_rounded_once(memory):
    """1 + 2**-23 squared less 1 + 2**-22 is 2**-46, which a product by itself has rounded away."""
    x = np.float32(1 + 2**-23)
    body = f"""
        ld.global.f32 %f1, [%rd2];
        mov.f32 %f2, 0f{np.float32(-1 - 2**-22).view(np.uint32):08X};
        fma.rn.f32 %f3, %f1, %f1, %f2;
        mul.f32 %f4, %f1, %f1;
        add.f32 %f4, %f4, %f2;
        add.f32 %f5, %f3, %f4;
        st.global.f32 [%rd1], %f5;
    """
    assert floats(run(memory, body, [x] * 8)).tolist() == [2.0**-46] * 8


def test_rounding_down_and_conversions(memory):
    body = """
        ld.global.f32 %f1, [%rd2];
        fma.rm.f32 %f2, %f1, 0f3F800000, 0fB3800000;
        cvt.rzi.s32.f32 %r10, %f1;
        cvt.sat.f32.f32 %f3, %f1;
        cvt.rn.f32.s32 %f4, %r10;
        add.f32 %f4, %f4, %f3;
        sub.f32 %f5, %f1, %f2;
        add.f32 %f4, %f4, %f5;
        st.global.f32 [%rd1], %f4;
    """
    below = 1 - np.nextafter(np.float32(1), np.float32(0))  # less 2**-24, rounded down
    found = floats(run(memory, body, np.full(8, 1, np.float32)))
    assert found[0] == np.float32(2 + below)
    assert floats(run(memory, body, np.full(8, -2.5, np.float32)))[0] == pytest.approx(-2)


def test_tf32_is_rounded_as_our_own_rule_does(memory):
    numbers = np.random.default_rng(0).standard_normal(8).astype(np.float32)
    numbers[:3] = [1 + 2.0**-11, -1 - 2.0**-11, 0]  # ties, and none
    body = """
        ld.global.f32 %f1, [%rd2];
        cvt.rna.tf32.f32 %r10, %f1;
        st.global.u32 [%rd1], %r10;
    """
    np.testing.assert_array_equal(floats(run(memory, body, numbers)), as_tf32(numbers))


def test_two_halves_and_a_whole(memory):
    body = """
        mov.u64 %rd10, 8589934595;
        mov.b64 {%r10, %r11}, %rd10;
        mov.b64 %rd11, {%r11, %r10};
        st.global.u64 [%rd1], %rd11;
    """
    assert run(memory, body)[0] == 3 * 2**32 + 2


# ---- lanes that part -------------------------------------------------------------------------


def test_each_lane_goes_its_way_and_all_meet(memory):
    """Lane n goes round n times; the odd ones add 100; behind it all add 1000."""
    body = """
        mov.u32 %r10, 0;
        mov.u64 %rd10, 0;
    $LOOP:
        setp.ge.u32 %p1, %r10, %r2;
        @%p1 bra $BEHIND;
        add.s32 %r10, %r10, 1;
        add.s64 %rd10, %rd10, 1;
        bra.uni $LOOP;
    $BEHIND:
        and.b32 %r11, %r2, 1;
        setp.eq.s32 %p2, %r11, 0;
        @%p2 bra $EVEN;
        add.s64 %rd10, %rd10, 100;
    $EVEN:
        add.s64 %rd10, %rd10, 1000;
        st.global.u64 [%rd1], %rd10;
    """
    wanted = [1000 + n + 100 * (n % 2) for n in range(8)]
    assert run(memory, body, count=2).tolist() == wanted * 2


PASSED_ON = """
    mul.wide.u32 %rd10, %r2, 4;
    mov.u64 %rd11, line;
    add.s64 %rd12, %rd11, %rd10;
    STORE
    bar.sync 0;
    neg.s64 %rd10, %rd10;
    add.s64 %rd12, %rd11, %rd10;
    ld.shared.u32 %r10, [%rd12+28];
    cvt.u64.u32 %rd13, %r10;
    st.global.u64 [%rd1], %rd13;
"""


def test_lanes_wait_for_each_other(memory):
    """The odd ones come later, and each reads what another wrote."""
    late = """
        and.b32 %r11, %r2, 1;
        setp.eq.s32 %p1, %r11, 0;
        @%p1 bra $NOW;
        bra.uni $NOW;
    $NOW:
        st.shared.u32 [%rd12], %r5;
    """
    found = run(memory, PASSED_ON.replace("STORE", late), count=2)
    assert found.tolist() == [*range(7, -1, -1), *range(15, 7, -1)]


def test_a_lane_that_ends_while_others_wait_is_an_error(memory):
    body = "setp.eq.s32 %p1, %r2, 3; @%p1 bra $END; bar.sync 0;"
    with pytest.raises(EmulationError, match="others of their block, which ended"):
        run(memory, body)


def test_what_nobody_wrote_into_shared_memory_is_no_number(memory):
    body = "ld.shared.u32 %r10, [line+8]; st.global.u32 [%rd1], %r10;"
    assert np.isnan(floats(run(memory, body))).all()


def test_each_counts_for_itself(memory):
    body = """
        ld.param.u64 %rd10, [kernel_param_1];
        atom.global.add.u32 %r10, [%rd10], 1;
        cvt.u64.u32 %rd11, %r10;
        st.global.u64 [%rd1], %rd11;
    """
    assert sorted(run(memory, body, count=3)) == list(range(24))


def test_all_lanes_write_to_one_place(memory):
    body = "ld.param.u64 %rd10, [kernel_param_0]; st.global.u32 [%rd10], %r2;"
    assert run(memory, body).view(np.uint32)[0] in range(8)


# ---- tensor cores ----------------------------------------------------------------------------


def test_a_product_of_matrices():
    """Who holds what, as NVIDIA's description of ``mma.m16n8k8`` has it."""
    rng = np.random.default_rng(0)
    a, b, c = (
        as_tf32(rng.standard_normal(s).astype(np.float32)) for s in ((16, 8), (8, 8), (16, 8))
    )
    held = {"a": np.zeros((4, 32)), "b": np.zeros((2, 32)), "c": np.zeros((4, 32))}
    for lane in range(32):
        group, member = divmod(lane, 4)
        for i in range(4):
            row = group if i in (0, 2) else group + 8
            held["a"][i, lane] = a[row, member if i < 2 else member + 4]
        for i in range(2):
            held["b"][i, lane] = b[member + 4 * i, group]
        for i in range(4):
            held["c"][i, lane] = c[group if i < 2 else group + 8, 2 * member + i % 2]
    parts = [[each.astype(np.float32) for each in held[name]] for name in "abc"]
    bits = [[each.view(np.uint32) for each in part] for part in parts[:2]]
    found = tensor_cores(None, *bits, parts[2])
    wanted = c + a @ b
    for lane in range(32):
        group, member = divmod(lane, 4)
        for i in range(4):
            right = wanted[group if i < 2 else group + 8, 2 * member + i % 2]
            assert found[i][lane] == pytest.approx(right, rel=1e-5)
    some = np.arange(32) < 16
    with pytest.raises(EmulationError, match="some of a warp's lanes"):
        tensor_cores(some, *bits, parts[2])


# ---- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("ld.global.u64 %rd10, [%rd2+4096];", "8 bytes of the card's memory that nobody asked for"),
        ("ld.global.u64 %rd10, [%rd2+-4096];", "nobody asked for"),
        ("st.global.f32 [%rd1+256], 0f00000000;", "nobody asked for"),
        ("ld.global.u32 %r10, [%rd2+2];", "4 bytes at an address that is no multiple of 4"),
        ("st.shared.v2.u32 [line+4], {%r2, %r2};", "8 bytes at an address that is no multiple"),
        ("ld.shared.u32 %r10, [line+32];", "shared memory that the block does not have"),
        ("ld.local.u32 %r10, [%rd2];", "memory that the emulation does not know: ld.local.u32"),
        ("brev.b32 %r10, %r2;", r"does not know: brev.b32 %r10, %r2"),
    ],
)
def test_refused(memory, body, text):
    with pytest.raises(EmulationError, match=text):
        run(memory, body)


@pytest.mark.parametrize("loads", ["u64", "v2.u32"])
def test_only_the_lanes_that_are_there_read(memory, loads):
    """All lanes but one have an address that nobody asked for, and jump over the load."""
    body = """
        setp.ne.s32 %p1, %r2, 3;
        selp.b64 %rd10, 20001, 0, %p1;
        add.s64 %rd2, %rd2, %rd10;
        @%p1 bra $END;
        LOAD
        st.global.u64 [%rd1], %rd11;
    """
    load = "ld.global.u64 %rd11, [%rd2];"
    if loads != "u64":
        load = "ld.global.v2.u32 {%r10, %r11}, [%rd2]; mov.b64 %rd11, {%r10, %r11};"
    numbers = np.arange(8, dtype=np.uint64)
    assert run(memory, body.replace("LOAD", load), numbers)[3] == 3
    with pytest.raises(EmulationError):
        run(memory, body.replace("LOAD", load).replace("@%p1", "@!%p1"), numbers)


def test_more_threads_than_the_launch_bounds_allow_are_refused(memory):
    with pytest.raises(EmulationError, match="16 threads a block; its launch bounds allow 8"):
        run(memory, "", threads=16)


def test_memory_comes_back(memory):
    first = memory.take(100)
    memory.places(np.uint64(first + 96), 4)
    memory.give_back(first)
    with pytest.raises(EmulationError, match="nobody asked for"):
        memory.places(np.uint64(first + 96), 4)
    assert memory.take(100) == first
    with pytest.raises(MemoryError):
        memory.take(2**17)
