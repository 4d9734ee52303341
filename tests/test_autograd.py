"""Tensors, the graph, and the walk back through it."""

import gc
import operator
import re
import sys
import threading
import weakref

import numpy as np
import pytest

import tinydilate
import tinydilate.functional as F
from tinydilate import Op, Tensor, buffers, is_grad_enabled, no_grad, tensor, watching
from tinydilate.device import MetaArray
from tinydilate.errors import DeviceError, DtypeError, GraphError, ShapeError


def leaf(*numbers, dtype=np.float64):
    return tensor(np.array(numbers, dtype), requires_grad=True)


# ---- the walk --------------------------------------------------------------------------------


def test_a_diamond_counts_every_path():
    """b = a + a; c = b + b: four paths from c to a, so the derivative is 4."""
    a = leaf(3.0)
    b = a + a
    c = b + b
    c.backward(np.ones(1))
    assert a.grad.numpy().tolist() == [4.0]


def test_a_diamond_with_sides_of_different_length():
    a = leaf(2.0)
    long = a
    for _ in range(5):
        long = long * a  # a**6
    (long + a * long).sum().backward()  # a**6 + a**7
    np.testing.assert_allclose(a.grad.numpy(), [6 * 2.0**5 + 7 * 2.0**6])


def test_each_op_is_visited_once():
    visits = []

    class Watched(Op):
        def forward(self, x):
            return x + 0

        def backward(self, grad):
            visits.append(grad.copy())
            return grad

    a = leaf(1.0)
    b = Watched()(a)
    for _ in range(10):
        b = b + b
    b.backward(np.ones(1))
    assert [grad.tolist() for grad in visits] == [[1024.0]]


def test_a_deep_graph_needs_no_recursion():
    a = leaf(1.0)
    b = a
    for _ in range(10_000):
        b = b + 1.0
    assert sys.getrecursionlimit() < 10_000
    b.backward(np.ones(1))
    assert a.grad.numpy().tolist() == [1.0]


def test_a_deep_graph_is_let_go_without_recursion():
    """A chain of 100,000 ops that is never walked, and a shorter one that is kept after it."""

    class Same(Op):
        def forward(self, x):
            return x

        def backward(self, grad):
            return grad

    for length, walked in ((100_000, False), (20_000, True)):
        a = leaf(1.0)
        b = a
        for _ in range(length):
            b = Same()(b)
        if walked:
            b.backward(np.ones(1), retain_graph=True)
            assert a.grad.numpy().tolist() == [1.0]
        watched = weakref.ref(b)
        del b
        gc.collect()
        assert watched() is None


def test_only_leaves_keep_their_gradient():
    a = leaf(1.0, 2.0)
    b = a * 3.0
    c = b.sum()
    c.backward()
    assert b.grad is None
    assert c.grad is None
    assert a.grad.numpy().tolist() == [3.0, 3.0]
    assert not a.grad.requires_grad


def test_gradients_of_several_walks_add_up():
    a = leaf(1.0)
    for _ in range(3):
        (a * 2.0).sum().backward()
    assert a.grad.numpy().tolist() == [6.0]
    a.grad = None
    (a * 2.0).sum().backward()
    assert a.grad.numpy().tolist() == [2.0]


def test_a_leaf_that_is_the_result():
    a = leaf(5.0)
    a.backward()
    a.backward(np.array([2.0]))
    assert a.grad.numpy().tolist() == [3.0]


def test_tensors_outside_the_graph_get_nothing():
    a, b = leaf(1.0), tensor(np.array([2.0]))
    (a * b).sum().backward()
    assert b.grad is None


def test_detach_cuts_the_graph():
    a = leaf(3.0)
    (a * a.detach()).sum().backward()
    assert a.grad.numpy().tolist() == [3.0]
    assert a.detach().data is a.data


# ---- a second walk ---------------------------------------------------------------------------

USED_UP = (
    "expected a graph that can still be walked; got one whose saved arrays were let go by an "
    "earlier backward. Compute the result again, or write backward(retain_graph=True) the first "
    "time."
)


def test_a_second_walk_is_refused():
    a = leaf(2.0)
    b = (a * a).sum()
    b.backward()
    with pytest.raises(GraphError, match="^" + re.escape(USED_UP) + "$"):
        b.backward()
    assert a.grad.numpy().tolist() == [4.0]


def test_a_walk_into_a_part_that_was_used_up_is_refused():
    a = leaf(2.0)
    shared = a * a
    shared.sum().backward()
    with pytest.raises(GraphError, match=re.escape("graph that can still be walked")):
        (shared * 3.0).sum().backward()


def test_a_retained_graph_walked_twice_doubles_the_gradients():
    a = leaf(2.0)
    b = (a * a).sum()
    b.backward(retain_graph=True)
    b.backward(retain_graph=True)
    assert a.grad.numpy().tolist() == [8.0]
    b.backward()
    assert a.grad.numpy().tolist() == [12.0]
    with pytest.raises(GraphError):
        b.backward()


def test_what_an_op_saved_is_let_go_by_the_walk():
    a = leaf(*np.ones(1000))
    b = F.exp(a)
    op, saved = b.op, weakref.ref(b.op.b.base if b.op.b.base is not None else b.op.b)
    out = b.sum()
    del b
    assert saved() is not None
    out.backward()
    assert vars(op) == {"used_up": True}
    gc.collect()
    assert saved() is None


def test_gradients_are_let_go_before_the_next_op_makes_new_ones():
    alive, most = [], []

    class Watched(Op):
        def forward(self, x):
            return x + 0

        def backward(self, grad):
            most.append(sum(seen() is not None for seen in alive))
            result = grad * 2
            alive.append(weakref.ref(result))
            return result

    a = leaf(*np.ones(1000))
    b = a
    for _ in range(5):
        b = Watched()(b)
    b.backward(np.ones(1000))
    assert most == [0, 1, 1, 1, 1], "an op finds its own gradient and no older one"
    assert a.grad.data[0] == 32


def test_a_leaf_takes_over_an_array_of_its_own_and_copies_a_view():
    given = []

    class Gives(Op):
        def __init__(self, make):
            self.make = make

        def forward(self, x):
            return x + 0

        def backward(self, grad):
            given.append(self.make())
            return given[-1]

    block = buffers.zeros((400, 200), np.float64)
    for make, copied in (
        (lambda: np.ones((400, 200)), False),
        (lambda: buffers.zeros((400, 200), np.float64), False),
        (lambda: block[:], True),
        (lambda: block.reshape(-1).reshape(400, 200), True),
        (lambda: np.ones((200, 400)).T, True),
    ):
        a = tensor(np.ones((400, 200)), requires_grad=True)
        Gives(make)(a).backward(np.ones((400, 200)))
        assert (a.grad.data is not given[-1]) == copied
        assert np.shares_memory(a.grad.data, given[-1]) != copied


# ---- where the walk begins -------------------------------------------------------------------


def test_many_numbers_need_a_gradient():
    text = (
        "backward from a tensor of shape (2,) needs a gradient of that shape: the derivative of "
        "many numbers at once is ambiguous. Reduce it to one number, for example with .sum(), or "
        "pass backward(gradient)."
    )
    with pytest.raises(ShapeError, match="^" + re.escape(text) + "$"):
        (leaf(1.0, 2.0) * 2.0).backward()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_needs_none(shape):
    a = tensor(np.full(shape, 3.0), requires_grad=True)
    (a * a).backward()
    np.testing.assert_array_equal(a.grad.numpy(), np.full(shape, 6.0))


def test_the_gradient_may_be_a_tensor_an_array_or_a_list():
    for gradient in (tensor(np.array([1.0, 2.0])), np.array([1.0, 2.0]), [1.0, 2.0]):
        a = leaf(5.0, 6.0)
        (a * 2.0).backward(gradient)
        assert a.grad.numpy().tolist() == [2.0, 4.0]


def test_the_gradient_given_is_not_written_to():
    given = np.ones(2)
    a = leaf(1.0, 2.0)
    (a + a).backward(given)
    a.backward(given)
    a.backward(given)
    assert given.tolist() == [1.0, 1.0]
    assert a.grad.numpy().tolist() == [4.0, 4.0]


BEGINNINGS = [
    (
        "nothing requires grad",
        lambda: tensor([1.0]).backward(),
        GraphError,
        "expected a tensor that requires grad; got one that does not depend on any. Make a leaf "
        "with requires_grad=True and compute outside no_grad().",
    ),
    (
        "another shape",
        lambda: (leaf(1.0, 2.0) * 2.0).backward(np.ones(3)),
        ShapeError,
        "expected a gradient of shape (2,), as the tensor has; got (3,).",
    ),
    (
        "another dtype",
        lambda: (leaf(1.0) * 2.0).backward(tensor(np.ones(1, np.float32))),
        DtypeError,
        "expected a gradient of float64; got float32. Convert it with .to().",
    ),
    (
        "numpy of a leaf",
        lambda: leaf(1.0).numpy(),
        GraphError,
        "expected a tensor outside the graph; got one that requires grad, whose numbers could "
        "change unseen. Write .detach().numpy().",
    ),
    (
        "item of two numbers",
        lambda: leaf(1.0, 2.0).item(),
        ShapeError,
        "expected a tensor with one element; got shape (2,). Reduce it first, for example with "
        ".sum(), or take .numpy().",
    ),
    (
        "len of a number",
        lambda: len(tensor(1.0)),
        ShapeError,
        "expected a tensor with axes; got a single number. Take .item().",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "text"), [row[1:] for row in BEGINNINGS], ids=[row[0] for row in BEGINNINGS]
)
def test_a_walk_that_cannot_begin_says_why(call, error, text):
    with pytest.raises(error, match="^" + re.escape(text) + "$"):
        call()


# ---- no_grad ---------------------------------------------------------------------------------


def test_no_grad_records_nothing():
    a = leaf(1.0)
    with no_grad():
        assert not is_grad_enabled()
        b = a * 2.0
    assert is_grad_enabled()
    assert b.op is None
    assert not b.requires_grad


def test_no_grad_nests():
    with no_grad():
        with no_grad():
            pass
        assert not is_grad_enabled()
    assert is_grad_enabled()


def test_no_grad_as_a_decorator():
    @no_grad()
    def double(x):
        """Twice."""
        return x * 2.0

    assert double.__doc__ == "Twice."
    for _ in range(2):  # the decorator is used again at each call
        assert not double(leaf(1.0)).requires_grad
        assert is_grad_enabled()


def test_no_grad_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert is_grad_enabled()


def test_no_grad_holds_in_its_own_thread_only():
    seen = []
    with no_grad():
        other = threading.Thread(target=lambda: seen.append(is_grad_enabled()))
        other.start()
        other.join()
    assert seen == [True]


def test_a_leaf_made_under_no_grad_still_is_one():
    with no_grad():
        a = leaf(1.0)
    (a * 2.0).sum().backward()
    assert a.grad.numpy().tolist() == [2.0]


# ---- memory ----------------------------------------------------------------------------------

SHARING = [
    ("a sum of two", lambda a, b: a + b),
    ("the same twice", lambda a, b: a + a + b),
    ("reshaped", lambda a, b: a.reshape(2, 1) + b.reshape(2, 1)),
    ("a difference", lambda a, b: a - b),
    ("joined", lambda a, b: F.cat([a, b])),
    ("cast there and back", lambda a, b: (a.to(np.float32) + b.to(np.float32)).to(np.float64)),
    ("moved nowhere", lambda a, b: a.to("cpu") + b.to("cpu")),
]


@pytest.mark.parametrize("function", [s[1] for s in SHARING], ids=[s[0] for s in SHARING])
def test_gradients_never_share_memory(function):
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    out = function(a, b)
    given = np.ones(out.shape)
    out.backward(given)
    assert not np.shares_memory(a.grad.data, b.grad.data)
    for one in (a, b):
        assert not np.shares_memory(one.grad.data, given)
    before = b.grad.numpy().copy()
    a.grad.data[:] = 7.0
    np.testing.assert_array_equal(b.grad.numpy(), before)
    assert given.tolist() == np.ones(out.shape).tolist()


def test_a_tensor_shares_the_memory_of_a_contiguous_array():
    array = np.ones((2, 3), np.float32)
    assert np.shares_memory(tensor(array).data, array)
    assert np.shares_memory(tensor(array).numpy(), array)
    assert not np.shares_memory(tensor(array.T).data, array)


# ---- dtypes ----------------------------------------------------------------------------------


def test_arrays_keep_their_dtype_and_python_numbers_are_float32():
    assert tensor(1).dtype == np.float32
    assert tensor([1, 2]).dtype == np.float32
    assert tensor([[True]]).dtype == np.float32
    for dtype in (np.float64, np.float32, np.int64, np.uint8, bool):
        assert tensor(np.ones(2, dtype)).dtype == dtype
        assert tensor(np.ones(2, dtype)[0]).dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_python_number_takes_the_dtype_beside_it(dtype):
    a = tensor(np.ones(2, dtype))
    results = [a + 1, 1 + a, a - 1.5, 2 - a, a * 3, 3 * a, a / 2, 2 / a, a**2, 2**a, -a]
    assert {result.dtype for result in results} == {np.dtype(dtype)}
    values = [result.numpy()[0] for result in results]
    assert values == [2, 2, -0.5, 1, 3, 3, 0.5, 2, 1, 2, -1]


def test_foreign_byte_order_is_turned():
    assert tensor(np.array([1.0, 2.0], ">f8")).data.dtype.isnative
    assert (tensor(np.array([1.0, 2.0], ">f8")) + 1).numpy().tolist() == [2.0, 3.0]


MIXED = [
    (
        "two floats",
        lambda: tensor(np.ones(2, np.float32)) + tensor(np.ones(2)),
        DtypeError,
        "expected tensors of one dtype, float32 or float64; got float32 and float64. Convert one "
        "of them, for example with .to(np.float32).",
    ),
    (
        "float and integer",
        lambda: tensor(np.ones(2)) * np.arange(2),
        DtypeError,
        "expected numbers of dtype float32 or float64; got int64. Convert them: "
        "array.astype(np.float32), tensor.to(np.float32).",
    ),
    (
        "integers",
        lambda: F.exp(np.arange(2)),
        DtypeError,
        "expected numbers of dtype float32 or float64; got int64. Convert them: "
        "array.astype(np.float32), tensor.to(np.float32).",
    ),
    (
        "integers that require grad",
        lambda: tensor(np.arange(3), requires_grad=True),
        DtypeError,
        "expected float32 or float64 for a tensor that requires grad; got int64. Whole numbers "
        "have no derivative: convert with .astype(np.float32).",
    ),
    (
        "text",
        lambda: tensor(["one"]),
        DtypeError,
        "expected real numbers; got an array of dtype <U3. Convert it with .astype(np.float32), "
        "if it holds numbers.",
    ),
    (
        "unknown device",
        lambda: tensor([1.0], device="tpu"),
        DeviceError,
        'expected a device out of cpu, cuda, meta; got \'tpu\'. Write "cpu", or "cuda" for a GPU.',
    ),
    (
        "one of several cards",
        lambda: tensor([1.0]).to("cuda:0"),
        DeviceError,
        "expected a device out of cpu, cuda, meta; got 'cuda:0'. One card is used, by the name "
        '"cuda"; CUDA_VISIBLE_DEVICES chooses it before Python starts.',
    ),
    (
        "two devices",
        lambda: tensor([1.0], device="meta") + tensor([1.0]),
        DeviceError,
        "expected tensors on one device; got one of shape (1,) on meta and one of shape (1,) on "
        'cpu. Move the one that is on cpu, and the module, if it is a module\'s: .to("meta").',
    ),
    (
        "numbers out of nothing",
        lambda: tensor([1.0], device="meta").to("cpu"),
        DeviceError,
        "expected an array with numbers to move to cpu; got one on meta, which has a shape only. "
        "Make the tensor or the module on the device where it is to compute.",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "text"), [row[1:] for row in MIXED], ids=[row[0] for row in MIXED]
)
def test_dtypes_and_devices_are_not_mixed(call, error, text):
    with pytest.raises(error, match="^" + re.escape(text) + "$"):
        call()


def test_gradients_flow_back_through_a_cast():
    a = leaf(1.0, 2.0)
    (a.to(np.float32) * 3).sum().backward()
    assert a.grad.dtype == np.float64
    assert a.grad.numpy().tolist() == [3.0, 3.0]
    assert a.to(np.float64) is a


# ---- with NumPy ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "pow", "matmul"])
def test_array_and_tensor_make_a_tensor_either_way(name):
    operation = getattr(operator, name)
    array, t = np.array([[1.0, 2.0], [3.0, 4.0]]), tensor(np.array([[2.0, 5.0], [1.0, 3.0]]))
    for mine, theirs in ((array, t), (t, array)):
        result = operation(mine, theirs)
        assert isinstance(result, Tensor)
        desired = operation(
            np.asarray(getattr(mine, "data", mine)), getattr(theirs, "data", theirs)
        )
        np.testing.assert_allclose(result.numpy(), desired)


def test_numpy_scalars_beside_a_tensor():
    result = np.float64(2.0) * tensor(np.array([1.0, 2.0]))
    assert isinstance(result, Tensor)
    assert result.numpy().tolist() == [2.0, 4.0]


def test_arrays_in_place_of_tensors():
    assert F.relu(np.array([-1.0, 1.0])).numpy().tolist() == [0.0, 1.0]
    assert F.add([1.0, 2.0], np.float32(1)).numpy().tolist() == [2.0, 3.0]


# ---- single numbers, empty arrays, printing --------------------------------------------------


def test_a_number_without_axes():
    a = tensor(np.array(3.0), requires_grad=True)
    out = F.exp(-(a * a) / 2.0 + 1.0)
    assert out.shape == ()
    assert isinstance(out.data, np.ndarray)
    out.backward()
    assert a.grad.shape == ()
    np.testing.assert_allclose(a.grad.item(), -3 * np.exp(-4.5 + 1))
    assert float(tensor(2.5)) == 2.5
    assert bool(tensor(1.0))
    assert not bool(tensor(0.0))


def test_an_array_without_elements():
    a = tensor(np.zeros((0, 3)), requires_grad=True)
    out = (a * 2.0 + np.ones(3)).sum()
    assert out.item() == 0.0
    out.backward()
    assert a.grad.shape == (0, 3)


def test_printing_shows_numbers_dtype_and_graph():
    assert repr(tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    assert repr(leaf(1.0)) == "tensor([1.], dtype=float64, requires_grad=True)"
    meta = tensor(np.ones((2, 3)), device="meta")
    assert repr(meta) == "tensor(shape=(2, 3), dtype=float64, device='meta')"


def test_methods_are_the_functions():
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    t = tensor(x)
    pairs = [
        (t.sum(1, keepdim=True), F.sum(x, 1, keepdim=True)),
        (t.mean(dim=(0, 2)), F.mean(x, (0, 2))),
        (t.max(0), F.max(x, 0)),
        (t.argmax(dim=-1), F.argmax(x, -1)),
        (t.exp(), F.exp(x)),
        ((t * t).log(), F.log(x * x)),
        (t.relu(), F.relu(x)),
        (t.softmax(dim=1), F.softmax(x, 1)),
        (t.log_softmax(1), F.log_softmax(x, 1)),
        (t.reshape(6, 4), F.reshape(x, 6, 4)),
        (t.permute(2, 0, 1), F.permute(x, 2, 0, 1)),
        (t.transpose(0, 1), F.transpose(x, 0, 1)),
        (t.flatten(1), F.flatten(x, 1)),
        (t[0, ..., ::-1], F.getitem(x, (0, ..., slice(None, None, -1)))),
    ]
    for method, function in pairs:
        np.testing.assert_array_equal(method.numpy(), function.numpy())


def test_iterating_over_a_tensor_ends():
    assert [row.numpy().tolist() for row in tensor(np.arange(4.0).reshape(2, 2))] == [
        [0, 1],
        [2, 3],
    ]


# ---- shapes alone ----------------------------------------------------------------------------


def test_meta_tensors_run_forwards_and_backwards():
    x = tensor(MetaArray((2, 3, 8, 8)), device="meta")
    w = tensor(MetaArray((4, 3, 3, 3)), requires_grad=True, device="meta")
    out = F.relu(F.conv2d(x, w, padding=2, dilation=2) * 2.0 + 1)
    assert (out.shape, out.device) == ((2, 4, 8, 8), "meta")
    loss = F.cross_entropy(out, MetaArray((2, 8, 8), np.int64))
    assert loss.shape == ()
    loss.backward()
    assert (w.grad.shape, w.grad.device, x.grad) == (w.shape, "meta", None)
    loss = F.relu(F.conv2d(x, w)).sum()
    loss.backward()  # and once more, onto the first
    assert w.grad.shape == w.shape


def test_a_huge_meta_tensor_costs_nothing():
    x = tensor(MetaArray((10_000, 3, 10_000, 10_000)), device="meta")
    assert F.max_pool2d(x, 2).shape == (10_000, 3, 5_000, 5_000)


def test_meta_tensors_still_check_shapes():
    x = tensor(MetaArray((1, 3, 8, 8)), device="meta")
    with pytest.raises(ShapeError, match="the window does not fit"):
        F.conv2d(x, tensor(MetaArray((1, 3, 3, 3)), device="meta"), dilation=8)


# ---- watching --------------------------------------------------------------------------------


def test_a_watcher_sees_every_launch():
    seen = []
    a = leaf(1.0, 2.0)
    with watching(seen.append):
        F.exp(a + a).sum().backward()
    F.exp(a)
    assert [(launch.kernel, launch.implementation) for launch in seen] == [
        ("add_forward", "cpu"),
        ("exp_forward", "cpu"),
        ("sum_to_shape", "cpu"),
        ("copy_view", "cpu"),
        ("mul_forward", "cpu"),
        ("accumulate", "cpu"),
    ]
    assert all(launch.seconds > 0 for launch in seen)
    np.testing.assert_array_equal(seen[1].arguments[0], [2.0, 4.0])
    np.testing.assert_array_equal(seen[1].result, np.exp([2.0, 4.0]))


def test_watchers_nest_and_leave_after_an_exception():
    outer, inner = [], []
    with watching(outer.append):
        with pytest.raises(ShapeError), watching(inner.append):
            F.add(F.exp(leaf(1.0)), np.ones((2, 3)))[5, 5, 5]
        F.exp(leaf(1.0))
    assert (len(outer), len(inner)) == (3, 2)


def test_the_public_names_are_there():
    for name in tinydilate.__all__:
        assert hasattr(tinydilate, name)


class Square(Op):
    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, grad):
        return 2 * self.x * grad


def test_an_op_is_one_node_and_refuses_a_second_call():
    square, a = Square(), leaf(2.0)
    square(tensor(np.ones(1)))  # outside a graph it may be called again
    result = square(a)
    with pytest.raises(GraphError, match="a Square op that is not in a graph yet"):
        square(leaf(5.0))
    result.backward()
    assert a.grad.item() == 4
    with pytest.raises(GraphError, match=r"Make a new one for each call: Square\(\.\.\.\)\(x\)\.$"):
        square(a)


def test_an_op_returns_a_gradient_for_each_input():
    class Two(Square):
        def backward(self, grad):
            return grad, grad

    text = "Two.backward expected to return one gradient for each input, 1 in all; it returned 2."
    with pytest.raises(GraphError, match="^" + re.escape(text)):
        Two()(leaf(1.0)).backward()


def test_what_cannot_be_a_tensor_is_refused() -> None:
    with pytest.raises(ShapeError, match="expected rows of one length"):
        tensor([[1], [2, 3]])
    with pytest.raises(DtypeError, match="expected real numbers; got an array of dtype complex128"):
        tensor(np.array([1j]))
    with pytest.raises(DtypeError, match=r"got list. Write tinydilate.tensor\(...\)"):
        Tensor([1.0, 2.0])
    with pytest.raises(GraphError, match="computed, not assigned to"):
        tensor([1.0, 2.0])[0] = 3.0


def test_numpy_reads_a_tensor() -> None:
    x = tensor(np.arange(6.0).reshape(2, 3))
    assert np.asarray(x).dtype == np.float64
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    np.testing.assert_array_equal(x, x.data)
    np.testing.assert_array_equal(x.T, x.data.T)
    with pytest.raises(GraphError, match=r"Write .detach\(\).numpy\(\)"):
        np.asarray(tensor([1.0], requires_grad=True))


def test_a_tensor_is_made_where_its_data_are() -> None:
    assert tensor(MetaArray((2, 3))).device == "meta"
    assert tensor(np.zeros(3), device="meta").device == "meta"
    with pytest.raises(DeviceError, match="expected an array with numbers"):
        tensor(MetaArray((2, 3)), device="cpu")


def test_comparisons_go_element_by_element() -> None:
    a, b = np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([2.0, 2.0])
    x = tensor(a, requires_grad=True)
    for compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
        for other in (b, tensor(b), 2, x):
            expected = compare(a, other.data if isinstance(other, Tensor) else other)
            result = compare(x, other)
            assert isinstance(result, Tensor)
            assert not result.requires_grad
            np.testing.assert_array_equal(result.numpy(), expected)
            assert result.numpy().dtype == np.bool_
    labels = F.argmax(tensor([[1.0, 3.0], [2.0, 1.0]]), dim=1)
    assert (labels == np.array([1, 1])).numpy().tolist() == [True, False]
    assert (np.array([1, 1]) == labels).numpy().tolist() == [True, False]
    assert (tensor(a, device="meta") > b).shape == (2, 2)
    assert len({x, tensor(a), x}) == 2  # in sets and dictionaries a tensor is itself


@pytest.mark.parametrize("operator", ["+=", "-=", "*=", "/=", "**=", "@="])
def test_a_leaf_is_not_lost_in_place(operator):
    names = {"p": tensor(np.ones(2), requires_grad=True), "step": tensor(np.ones(2))}
    before = names["p"]
    text = (
        "expected a leaf that requires grad to stay as it is; got an operator such as -=, which "
        "would make another tensor of it. To change its numbers take an optimiser, or on the cpu "
        "write p.data -= step."
    )
    with no_grad(), pytest.raises(GraphError, match="^" + re.escape(text) + "$"):
        exec(f"p {operator} step", names)
    assert names["p"] is before
    names["p"].data -= 3 * names["step"]
    assert names["p"].data.tolist() == [-2, -2]


def test_a_sum_of_losses_grows_in_place():
    x = tensor(np.ones(2), requires_grad=True)
    loss = 0
    for _ in range(3):
        loss += (x * x).sum()
    loss.backward()
    assert (loss.item(), x.grad.data.tolist()) == (6, [6, 6])
    count = tensor(np.ones(2))
    count += 1
    assert count.data.tolist() == [2, 2]


def test_an_array_to_the_left_of_a_tensor_is_an_array_beside_it():
    array = np.array([1.0, 2.0])
    x = tensor(np.array([2.0, 1.0]), requires_grad=True)
    for found, expected in (
        (array + x, [3, 3]),
        (array - x, [-1, 1]),
        (array * x, [2, 2]),
        (array / x, [0.5, 2]),
        (array**x, [1, 2]),
        (np.float64(2) * x, [4, 2]),
        (np.exp(x), np.exp(x.data).tolist()),
        (np.log(x), np.log(x.data).tolist()),
        (np.negative(x), [-2, -1]),
        (array @ x, 4),
    ):
        assert found.requires_grad
        assert found.data.tolist() == expected
    assert (array < x).data.tolist() == (x > array).data.tolist() == [True, False]
    assert (array <= x).data.tolist() == [True, False]
    assert (array > x).data.tolist() == [False, True]
    assert (array >= x).data.tolist() == [False, True]
    assert (array == x).data.tolist() == [False, False]
    assert (array != x).data.tolist() == [True, True]
    assert (np.float64(2) * tensor(np.ones(2, np.float32))).dtype == np.float32


def test_numpys_functions_take_a_tensor_outside_the_graph_as_an_array():
    array = np.array([[1.0, 4.0], [9.0, 16.0]])
    x = tensor(array)
    for found, expected in (
        (np.mean(x), np.mean(array)),
        (np.sum(x, axis=1), [5, 25]),
        (np.sqrt(x), [[1, 2], [3, 4]]),
        (np.maximum(x, 5), [[5, 5], [9, 16]]),
        (np.stack([x, array])[0], array),
        (np.where(array > 4, x, 0), [[0, 0], [9, 16]]),
        (np.add.reduce(x), [10, 20]),
        (np.sum(x, axis=(0, 1)), 30),
        (np.transpose(x, (1, 0)), array.T),
        (np.pad(x, ((1, 0), (0, 0)))[1:], array),
        (np.block([[x, array], [array, x]])[2:, 2:], array),
        (np.add(array, x, out=np.empty((2, 2))), 2 * array),
    ):
        assert not isinstance(found, Tensor)
        assert np.array_equal(found, expected)
    assert np.allclose(x, array)
    leaf = tensor(array, requires_grad=True)
    for each in (x, leaf, tensor(array, device="meta")):
        assert (np.shape(each), np.ndim(each), np.size(each)) == ((2, 2), 2, 4)
    for write in (
        lambda: np.copyto(x, 0),
        lambda: np.add.at(x, [0], 1),
        lambda: np.put(x, [0], 9),
        lambda: np.fill_diagonal(x, 9),
    ):
        with pytest.raises(ValueError, match="read-only"):
            write()
    with pytest.raises(GraphError, match=r"^expected np\.exp to write to an array; got a tensor,"):
        np.exp(array, out=x)
    assert x.data.tolist() == [[1, 4], [9, 16]]
    total = np.zeros((2, 2))
    total += x
    assert total.tolist() == array.tolist()


def test_a_number_is_written_as_it_is_asked_for():
    loss = tensor([2 / 3]).sum()
    assert f"{loss:.3f}" == "0.667"
    assert f"{loss}" == str(loss)
    with pytest.raises(ShapeError, match=r"^expected a tensor with one element"):
        f"{tensor([1.0, 2.0]):.3f}"
