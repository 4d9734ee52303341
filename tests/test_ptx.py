"""The interpreter of PTX: what its instructions do, how lanes part and meet, what it refuses."""

import ctypes
import struct

import numpy as np
import ptx
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


def test_more_blocks_than_are_run_at_a_time(memory, monkeypatch):
    monkeypatch.setattr(ptx, "LANES", 16)
    body = "cvt.u64.u32 %rd4, %r5; st.global.u64 [%rd1], %rd4;"
    assert run(memory, body, count=5).tolist() == list(range(40))


def test_three_axes_of_a_grid_and_of_a_block(memory):
    """Each lane writes where it is, as digits, and how many there are."""
    places = [f"{name}.{axis}" for name in ("tid", "ctaid") for axis in "xyz"]
    places += ["ntid.y", "ntid.z", "nctaid.x", "nctaid.z"]
    digits = "".join(f"mov.u32 %r10, %{name}; mad.lo.s32 %r11, %r11, 10, %r10;" for name in places)
    body = f"""
        mov.u32 %r11, 0;
        {digits}
        mov.u32 %r12, %tid.y; mov.u32 %r13, %tid.z; mad.lo.s32 %r12, %r13, 2, %r12;
        mad.lo.s32 %r12, %r12, 2, %r2;
        mov.u32 %r13, %ctaid.z; mov.u32 %r14, %ctaid.y; mad.lo.s32 %r13, %r13, 3, %r14;
        mad.lo.s32 %r13, %r13, 2, %r3;
        mad.lo.s32 %r12, %r13, 8, %r12;
        ld.param.u64 %rd1, [kernel_param_0];
        mul.wide.u32 %rd3, %r12, 4;
        add.s64 %rd1, %rd1, %rd3;
        st.global.u32 [%rd1], %r11;
    """
    out = memory.take(4 * 12 * 8)
    there = memory.take(8 * 12 * 8)
    words = struct.pack("<QQI4x", out, there, 0)
    Program(TEXT.replace("BODY", body)).run(memory, (2, 3, 2), (2, 2, 2), words)
    found = np.frombuffer(ctypes.string_at(out, 4 * 12 * 8), np.uint32)
    wanted = [int(f"{x}{y}{z}{i}{j}{k}2222") for k, j, i, z, y, x in np.ndindex(2, 3, 2, 2, 2, 2)]
    assert found.tolist() == wanted


def test_each_lane_of_each_block_writes_its_number(memory):
    body = "cvt.u64.u32 %rd4, %r5; st.global.u64 [%rd1], %rd4;"
    assert run(memory, body, count=3).tolist() == list(range(24))


INTEGERS = [  # instruction, the width of a register, a, b, what comes out
    ("add.s32", 32, 2**32 - 1, 2, 1),
    ("add.s64", 64, 2**32 - 1, 2, 2**32 + 1),
    ("sub.s32", 32, 1, 2, 2**32 - 1),
    ("mul.lo.s32", 32, 2**31, 3, 2**31),
    ("mul.hi.u32", 32, 2**31, 4, 2),
    ("mul.hi.s32", 32, 2**31, 4, 2**32 - 2),
    ("mul.hi.s64", 64, 2**63, 2, 2**64 - 1),
    ("mul.hi.u64", 64, 2**63, 2, 1),
    ("min.s32", 32, 2**32 - 1, 5, 2**32 - 1),
    ("min.u32", 32, 2**32 - 1, 5, 5),
    ("max.s64", 64, 2**64 - 1, 5, 5),
    ("max.u64", 64, 2**64 - 1, 5, 2**64 - 1),
    ("div.s64", 64, 2**64 - 7, 2, 2**64 - 3),  # towards zero
    ("rem.s64", 64, 2**64 - 7, 2, 2**64 - 1),
    ("div.s32", 32, 2**31, 2, 3 * 2**30),  # the most negative number
    ("rem.s32", 32, 2**31, 3, 2**32 - 2),
    ("div.s32", 32, 7, 2**32 - 2, 2**32 - 3),
    ("rem.s32", 32, 7, 2**32 - 2, 1),
    ("div.u32", 32, 2**32 - 7, 2, 2**31 - 4),
    ("rem.u32", 32, 7, 4, 3),
    ("shr.s32", 32, 2**31, 31, 2**32 - 1),
    ("shr.s32", 32, 2**31, 99, 2**32 - 1),
    ("shr.u32", 32, 2**31, 31, 1),
    ("shr.u32", 32, 2**31, 32, 0),
    ("shr.s64", 64, 2**63, 63, 2**64 - 1),
    ("shr.u64", 64, 2**63, 62, 2),
    ("shl.b32", 32, 3, 31, 2**31),
    ("shl.b32", 32, 3, 32, 0),
    ("shl.b64", 64, 3, 32, 3 * 2**32),
    ("and.b32", 32, 6, 3, 2),
    ("or.b32", 32, 6, 3, 7),
    ("xor.b32", 32, 6, 3, 5),
    ("xor.b64", 64, 6 * 2**32, 3 * 2**32, 5 * 2**32),
]


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize(("name", "width", "a", "b", "wanted"), INTEGERS)
def test_whole_numbers(memory, name, width, a, b, wanted, written):
    """Of two registers, or of one and a number that is written there; each lane has others."""
    r = "%r" if width == 32 else "%rd"
    narrow = name[:2] == "sh"  # a shift is by a number of 32 bits
    second = "%r11" if narrow else f"{r}11"
    body = f"""
        ld.global.u{width} {r}10, [%rd2];
        ld.global.u{32 if narrow else width} {second}, [%rd2+64];
        {name} {r}12, {r}10, {b if written else second};
        mov.u64 %rd20, 0;
        st.global.u64 [%rd1], %rd20;
        st.global.u{width} [%rd1], {r}12;
    """
    numbers = np.array([1, a, 1, 1, a, 1, 1, 1] + [b] * 8, np.uint64)
    found = run(memory, body, numbers)
    assert (found[1], found[4]) == (wanted, wanted)
    assert len(set(found)) == (1 if found[0] == wanted else 2)


UNARY = [
    ("neg.s32", 32, 5, 2**32 - 5),
    ("neg.s64", 64, 5, 2**64 - 5),
    ("abs.s32", 32, 2**32 - 5, 5),
    ("not.b32", 32, 5, 2**32 - 6),
    ("not.b64", 64, 5, 2**64 - 6),
    ("mov.b32", 32, 5, 5),
]


@pytest.mark.parametrize(("name", "width", "a", "wanted"), UNARY)
def test_of_one_whole_number(memory, name, width, a, wanted):
    r = "%r" if width == 32 else "%rd"
    body = f"""
        ld.global.u{width} {r}10, [%rd2];
        {name} {r}11, {r}10;
        mov.u64 %rd20, 0;
        st.global.u64 [%rd1], %rd20;
        st.global.u{width} [%rd1], {r}11;
    """
    assert run(memory, body, np.full(8, a, np.uint64)).tolist() == [wanted] * 8


@pytest.mark.parametrize(
    ("kind", "wanted"), [("s32", 2**64 - 3), ("u32", 2**32 - 3), ("s8", 2**64 - 3)]
)
def test_a_load_into_a_wide_register_keeps_the_sign(memory, kind, wanted):
    body = f"ld.global.{kind} %rd10, [%rd2]; st.global.u64 [%rd1], %rd10;"
    assert run(memory, body, np.full(8, -3, np.int64)).tolist() == [wanted] * 8


def test_an_argument_keeps_its_sign(memory):
    body = "ld.param.s32 %rd10, [kernel_param_2]; st.global.u64 [%rd1], %rd10;"
    assert run(memory, body, argument=2**32 - 3)[0] == 2**64 - 3


def test_bits_put_among_others(memory):
    body = """
        mov.u32 %r10, 5;
        mov.u32 %r11, 255;
        bfi.b32 %r12, %r10, %r11, 2, 3;
        cvt.u64.u32 %rd10, %r12;
        st.global.u64 [%rd1], %rd10;
    """
    assert run(memory, body)[0] == 0b11110111


@pytest.mark.parametrize(
    "name", ["add.sat.s32", "mul.rz.f32", "mad.hi.u32", "membar.cta", "fma.rz.f32"]
)
def test_another_form_of_an_instruction_is_another_one(memory, name):
    with pytest.raises(EmulationError, match=f"does not know: {name}"):
        run(memory, f"{name} %r10, %r2, %r2, %r2;")


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
    "eq": [False, True, False, False],
    "lt": [True, False, False, False],
    "le": [True, True, False, False],
    "gt": [False, False, True, False],
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


FLOATS = [  # instruction, a, b, c, what comes out
    ("fma.rm.f32", 1, 1, -(2.0**-25), 1 - 2.0**-24),  # 1 is nearer
    ("fma.rn.f32", 1, 1, -(2.0**-25), 1),
    ("add.f32", 1, 2.0**-24, None, 1),
    ("sub.f32", 1, 3, None, -2),
    ("mul.f32", 3, -2, None, -6),
    ("div.rn.f32", 1, 4, None, 0.25),
    ("min.f32", np.nan, 2, None, 2),
    ("max.f32", 1, np.nan, None, 1),
    ("max.f32", 1, 2, None, 2),
    ("abs.f32", -3, None, None, 3),
    ("neg.f32", 3, None, None, -3),
    ("sqrt.rn.f32", 9, None, None, 3),
    ("rcp.rn.f32", 4, None, None, 0.25),
    ("ex2.approx.ftz.f32", -3, None, None, 0.125),
    ("ex2.approx.ftz.f32", -np.inf, None, None, 0),
    ("cvt.sat.f32.f32", 1.5, None, None, 1),
    ("cvt.sat.f32.f32", -1.5, None, None, 0),
    ("cvt.sat.f32.f32", np.nan, None, None, 0),
    ("cvt.rmi.f32.f32", -1.5, None, None, -2),
    ("cvt.rni.f32.f32", 2.5, None, None, 2),
    ("cvt.rzi.f32.f32", -1.5, None, None, -1),
]


@pytest.mark.parametrize(("name", "a", "b", "c", "wanted"), FLOATS)
def test_floats(memory, name, a, b, c, wanted):
    given = [x for x in (a, b, c) if x is not None]
    loads = [f"ld.global.f32 %f{n + 1}, [%rd2+{64 * n}];" for n in range(len(given))]
    operands = ", ".join(f"%f{n + 1}" for n in range(len(given)))
    body = f"{' '.join(loads)} {name} %f9, {operands}; st.global.f32 [%rd1], %f9;"
    numbers = np.zeros((24, 2), np.float32)
    numbers[:, 0] = np.repeat(np.array([*given, 0, 0][:3], np.float32), 8)
    found = floats(run(memory, body, numbers.view(np.uint64).reshape(-1)))
    assert found.tolist() == [np.float32(wanted)] * 8


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        ("s32", -2.7, 2**32 - 2),
        ("s32", 1e10, 2**31 - 1),
        ("s32", -1e10, 2**31),
        ("s32", np.nan, 2**31),
        ("u32", -2.7, 0),
        ("s64", 1e30, 2**63 - 1),
    ],
)
def test_floats_cut_to_whole_numbers(memory, kind, given, wanted):
    r = "%r10" if kind[1:] == "32" else "%rd10"
    body = f"""
        ld.global.f32 %f1, [%rd2];
        cvt.rzi.{kind}.f32 {r}, %f1;
        mov.u64 %rd20, 0;
        st.global.u64 [%rd1], %rd20;
        st.global.u{kind[1:]} [%rd1], {r};
    """
    assert run(memory, body, np.full(8, given, np.float32))[0] == wanted


def test_a_power_by_the_librarys_function(memory):
    body = """
        ld.global.f64 %fd1, [%rd2];
        { // callseq 0, 0
        .reg .b32 temp_param_reg;
        .param .b64 param0;
        st.param.f64 [param0+0], %fd1;
        .param .b64 param1;
        st.param.f64 [param1+0], 0d4008000000000000;
        .param .b64 retval0;
        call.uni (retval0),
        __internal_accurate_pow,
        (
        param0,
        param1
        );
        ld.param.f64 %fd2, [retval0+0];
        } // callseq 0
        st.global.f64 [%rd1], %fd2;
    """
    assert run(memory, body, np.arange(8.0), dtype="float64").tolist() == [n**3 for n in range(8)]


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
    """The odd ones take a way that stands behind all else, so the others are there before."""
    late = """
        and.b32 %r11, %r2, 1;
        setp.ne.s32 %p1, %r11, 0;
        @%p1 bra $LATE;
    $NOW:
        st.shared.u32 [%rd12], %r5;
    """
    body = PASSED_ON.replace("STORE", late) + "bra.uni $END; $LATE: bra.uni $NOW;"
    found = run(memory, body, count=2)
    assert found.tolist() == [*range(7, -1, -1), *range(15, 7, -1)]


@pytest.mark.parametrize("barrier", ["bar.sync 0;", ""])
def test_a_missing_barrier_between_warps_shows(memory, barrier):
    """Each of 64 lanes reads what one of the other warp wrote."""
    text = TEXT.replace(".b8 line[32]", ".b8 line[256]").replace(".maxntid 8, 1, 1", "")
    body = PASSED_ON.replace("STORE", "st.shared.u32 [%rd12], %r2;").replace("+28", "+252")
    body = body.replace("bar.sync 0;", barrier)
    found = []
    for _ in range(8):
        out, there = memory.take(8 * 64 * 4), memory.take(8 * 64 * 4)
        words = struct.pack("<QQI4x", out, there, 0)
        Program(text.replace("BODY", body)).run(memory, (4, 1, 1), (64, 1, 1), words)
        found += np.frombuffer(ctypes.string_at(out, 8 * 64 * 4), np.uint64).tolist()
    right = found == list(range(63, -1, -1)) * 32
    assert right == bool(barrier)


def test_lanes_at_different_barriers_are_an_error(memory):
    body = "setp.eq.s32 %p1, %r2, 3; @%p1 bra $THERE; bar.sync 0; bra.uni $END; $THERE: bar.sync 0;"
    with pytest.raises(EmulationError, match="one block that wait at different barriers"):
        run(memory, body)


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
        ("atom.global.add.u32 %r10, [%rd2+2], 1;", "4 bytes at an address that is no multiple"),
        ("ld.shared.u32 %r10, [line+-4];", "shared memory that the block does not have"),
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


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 65_536, 1), (1, 1, 65_536)])
def test_grids_that_no_card_takes_are_refused(memory, shape):
    program = Program(TEXT.replace("BODY", "").replace(".maxntid 8, 1, 1", ""))
    with pytest.raises(EmulationError, match="a card takes"):
        program.run(memory, shape, (8, 1, 1), bytes(24))
    with pytest.raises(EmulationError, match="a card takes"):
        program.run(memory, (1, 1, 1), (1, 1, 128), bytes(24))


def test_arrays_beside_each_other_are_apart(memory):
    """And what nobody wrote is no number."""
    first, second = memory.take(256), memory.take(256)
    assert second - first > 256
    with pytest.raises(EmulationError, match="nobody asked for"):
        memory.places(np.uint64(first + 256), 4)
    with pytest.raises(EmulationError, match="8 bytes"):
        memory.places(np.uint64(memory.take(4)), 8)
    assert np.isnan(np.frombuffer(ctypes.string_at(first, 256), np.float32)).all()


def test_shared_arrays_lie_side_by_side(memory):
    text = TEXT.replace(
        ".visible .entry", ".visible .shared .align 8 .b8 other[16];\n.visible .entry"
    )
    assert Program(text.replace("BODY", "")).shared_size == 48
    there = "[other+8]"
    body = (
        f"st.shared.u64 {there}, %rd3; ld.shared.u64 %rd10, {there}; st.global.u64 [%rd1], %rd10;"
    )
    out = memory.take(64)
    words = struct.pack("<QQI4x", out, memory.take(64), 0)
    Program(text.replace("BODY", body)).run(memory, (1, 1, 1), (8, 1, 1), words)
    assert np.frombuffer(ctypes.string_at(out, 64), np.uint64)[0] in range(0, 64, 8)


def test_memory_comes_back(memory):
    first = memory.take(100)
    memory.places(np.uint64(first + 96), 4)
    memory.give_back(first)
    with pytest.raises(EmulationError, match="nobody asked for"):
        memory.places(np.uint64(first + 96), 4)
    assert memory.take(100) == first
    with pytest.raises(MemoryError):
        memory.take(2**17)
