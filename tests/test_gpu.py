"""Whole computations on the GPU: every op from end to end, its slope, its bits, its memory.

`make test-gpu` runs this and all else that is marked so on a GPU; the simulator runs it on fewer
and smaller examples. That each twin alone agrees with its reference is `test_ops.py`.
"""

import gc
import threading

import numpy as np
import pytest
from cases import CASES, Call, Case, twins_of
from emulated_gpu import WANTED as EMULATED
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import TOLERANCE, close, run

import tinydilate
import tinydilate.functional as F
from tinydilate import device, gradcheck, nn, optim, tensor
from tinydilate.errors import DeviceError

pytestmark = pytest.mark.gpu

# The op has its twins, forwards and backwards.
WHOLE = [case for case in CASES if all("cuda" in twins_of(name) for name in case.kernels)]
each_case = pytest.mark.parametrize("case", WHOLE, ids=[case.name for case in WHOLE])
examples = settings(max_examples=1 if device.SIMULATED else 5)
dtypes = st.sampled_from([np.float32, np.float64])


def on_the_gpu(case: Case, call: Call, dtype) -> list[np.ndarray]:
    """Result and gradients of the public function, all computed there."""
    arrays = [array.astype(dtype) for array in call.arrays]
    leaves = [tensor(array, case.differentiable, device="cuda") for array in arrays]
    out = case.run(getattr(F, case.function), leaves, call)
    assert out.device == "cuda"
    if out.requires_grad:
        gradient = np.random.default_rng(0).normal(size=out.shape).astype(dtype)
        out.backward(tensor(gradient, device="cuda"))
    gradients = [leaf.grad.numpy() for leaf in leaves if leaf.grad is not None]
    return [out.detach().numpy(), *gradients]


@each_case
@examples
@given(data=st.data(), dtype=dtypes)
def test_results_and_gradients_are_those_of_the_cpu(case, data, dtype):
    call = data.draw(case.calls)
    tinydilate.manual_seed(0)
    found = on_the_gpu(case, call, dtype)
    tinydilate.manual_seed(0)
    arrays = [array.astype(dtype) for array in call.arrays]
    leaves, out = run(case, arrays, call, case.differentiable)
    if out.requires_grad:
        out.backward(np.random.default_rng(0).normal(size=out.shape).astype(dtype))
    expected = [out.data, *(leaf.grad.data for leaf in leaves if leaf.grad is not None)]
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        close(mine, theirs, dtype)


@each_case
@examples
@given(data=st.data())
def test_the_gradient_is_the_slope(case, data):
    """In float64, along a random direction."""
    if not case.differentiable:
        pytest.skip("no gradient")
    call = data.draw(case.calls)

    def function(*tensors):
        there = [x.to("cuda") for x in tensors]
        return case.run(getattr(F, case.function), there, call).to("cpu")

    gradcheck(function, *call.arrays, directions=1)


@each_case
@examples
@given(data=st.data())
def test_the_same_numbers_give_the_same_bits(case, data):
    call = data.draw(case.calls)
    results = []
    for _ in range(2):
        tinydilate.manual_seed(0)
        results.append([array.tobytes() for array in on_the_gpu(case, call, np.float32)])
    assert results[0] == results[1]


# ---- training --------------------------------------------------------------------------------

BATCH, SIDE = (1, 4) if device.SIMULATED else (2, 64)
HAS_WHAT_TRAINING_NEEDS = {"conv2d", "max_pool2d", "interpolate", "cross_entropy", "relu"} <= {
    case.function for case in WHOLE
}
needs_training = pytest.mark.skipif(
    not HAS_WHAT_TRAINING_NEEDS, reason="some op of a training step has no cuda twin yet"
)


def training(place):
    """A step of a network with every kind of layer but dropout; returns the loss's tensor."""
    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, 1, SIDE, SIDE)).astype(np.float32)
    labels = random.integers(0, 3, size=(BATCH, SIDE, SIDE))
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, relu=True, rng=0),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, padding=2, dilation=2, rng=1),
    ).to(place)
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    x, targets = tensor(images, device=place), tensor(labels, device=place)

    def step():
        optimizer.zero_grad()
        scores = F.interpolate(network(x), scale_factor=2, mode="bilinear")
        loss = F.cross_entropy(scores, targets)
        loss.backward()
        optimizer.step()
        return loss

    return step


@needs_training
def test_losses_are_those_of_the_cpu_step_by_step():
    count = 1 if device.SIMULATED else 5 if EMULATED else 50
    here, there = training("cpu"), training("cuda")
    losses = np.array([[here().item(), there().item()] for _ in range(count)])
    tolerance = 1e-4 if device.SIMULATED else 1e-2  # rounding grows from step to step
    np.testing.assert_allclose(losses[:, 1], losses[:, 0], rtol=tolerance)
    assert abs(losses[0, 0] - losses[0, 1]) < 10 * TOLERANCE[np.dtype(np.float32)]


@needs_training
def test_training_twice_gives_the_same_bits():
    count = 1 if device.SIMULATED else 5 if EMULATED else 100
    losses = []
    for _ in range(2):
        step = training("cuda")
        losses.append([step().item() for _ in range(count)])
    assert losses[0] == losses[1]


@needs_training
def test_ten_thousand_steps_take_the_memory_of_a_few():
    warm, count = (2, 1) if device.SIMULATED else (8, 20) if EMULATED else (50, 10_000)
    step = training("cuda")
    for _ in range(warm):
        loss = step()  # the last step's loss is still there during the next
    del loss
    gc.collect()
    before, known = device.cuda_statistics(), tables_of_pieces()
    for number in range(count):
        loss = step()
        if number % 100 == 0:
            assert np.isfinite(loss.item())
    del loss
    gc.collect()
    after, new = device.cuda_statistics(), tables_of_pieces() - known
    assert new <= 16, "orders in which the pool deals memory to four parameters"
    assert after.in_use == before.in_use + 512 * new, "what a step took came back with its end"
    assert after.peak <= before.peak + 512 * new
    assert after.made <= before.made + new, "nothing else was asked of the driver any more"


def tables_of_pieces():
    """How many tables are kept for the optimiser, of 512 bytes here: one for each such order."""
    return device._pieces.cache_info().currsize


# ---- recorded ---------------------------------------------------------------------------------


def recorded_training(record):
    """Losses of some steps on batches that change, gradients recorded or not."""
    random = np.random.default_rng(0)
    count = 1 if device.SIMULATED else 3
    batches = random.normal(size=(count, BATCH, 1, SIDE, SIDE)).astype(np.float32)
    targets = tensor(random.integers(0, 3, size=(BATCH, SIDE, SIDE)), device="cuda")
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, relu=True, rng=0),
        nn.Conv2d(4, 3, 3, padding=2, dilation=2, rng=1),
    ).to("cuda")
    optimizer = optim.Adam(network.parameters(), lr=0.1)
    x = tensor(batches[0], device="cuda")

    def gradients():
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), targets)
        loss.backward()
        return loss

    step = tinydilate.record(gradients) if record else gradients
    losses = []
    for batch in batches:
        device.write(batch, x.data)
        losses.append(step())
        losses[-1] = losses[-1].item()
        others = [tensor(np.ones(1000), device="cuda") for _ in range(9)]  # takes no memory of it
        optimizer.step()
        del others
    return losses


def test_numbers_beside_an_array_are_there_when_it_is_recorded():
    x = tensor(np.ones(3), device="cuda")
    step = tinydilate.record(lambda: (2 * x - 1) / 4)
    device.write(np.full(3, 4.0), x.data)
    assert step().numpy().tolist() == [1.75, 1.75, 1.75]


@needs_training
def test_recorded_steps_give_the_same_bits():
    assert recorded_training(True) == recorded_training(False)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        (lambda x: x.sum().item(), "a copy from the GPU"),
        (lambda x: x + tensor(np.ones(3), device="cuda"), "a copy to the GPU"),
        (lambda x: device.synchronize(), "a wait for the GPU"),
        (lambda x: device.seconds(F.relu, x), "a measurement of time"),
        (lambda x: tinydilate.record(lambda: x * x), "another recording"),
        (lambda x: F.dropout(x, 0.5), "dropout, which would drop the same"),
        (
            lambda x: optim.SGD([tensor(x.data, requires_grad=True)], 0.1).step(),
            "an optimiser's step",
        ),
        (
            lambda x: tensor(np.ones(3), requires_grad=True).sum().backward(),
            "a gradient on the cpu",
        ),
    ],
)
def test_what_cannot_be_repeated_is_refused(what, found):
    x, calls = tensor(np.ones(3), device="cuda"), []

    def function():
        calls.append(1)
        if len(calls) == 3:
            what(x)

    with pytest.raises(DeviceError, match=f"^expected launches alone while .* got {found}"):
        tinydilate.record(function)
    assert (x + 1).numpy().tolist() == [2, 2, 2], "and then everything goes on as before"


def recorded_product(forget):
    """(w, x, step): the slope of sum(w * x) by w, which is x."""
    w = tensor(np.array([1.0, 2.0]), requires_grad=True, device="cuda")
    x = tensor(np.ones(2), device="cuda")

    def function():
        if forget:
            w.grad = None
        (w * x).sum().backward()

    return w, x, tinydilate.record(function)


def test_a_recorded_gradient_is_that_of_the_repetition_alone():
    w, x, step = recorded_product(forget=True)

    def forget():
        w.grad = None

    for factor, between in enumerate((forget, (w * w).sum().backward, forget)):
        device.write(np.full(2, float(factor)), x.data)
        step()
        assert w.grad.numpy().tolist() == [factor, factor]
        between()


def test_a_gradient_from_before_is_not_recorded():
    with pytest.raises(DeviceError) as caught:
        recorded_product(forget=False)
    assert str(caught.value) == (
        "expected launches alone while they are recorded; got a gradient added to one from before. "
        "Forget that one at the beginning of the function: optimizer.zero_grad()."
    )


def test_a_sum_of_gradients_within_a_repetition_is_recorded():
    w = tensor(np.ones(2), requires_grad=True, device="cuda")

    def function():
        w.grad = None
        (2 * w).sum().backward()
        (3 * w).sum().backward()

    step = tinydilate.record(function)
    for _ in range(2):
        step()
        assert w.grad.numpy().tolist() == [5, 5]


def test_another_thread_may_learn_on_the_processor_meanwhile():
    w, x = tensor(np.ones(2), requires_grad=True), tensor(np.ones(2), device="cuda")
    learnt = []

    def learn():
        (w * w).sum().backward()
        learnt.append(w.grad.data.tolist())

    def function():
        thread = threading.Thread(target=learn)
        thread.start()
        thread.join()
        return x + 1

    tinydilate.record(function)
    assert learnt == [[2, 2], [4, 4], [6, 6]]


def test_a_parameter_that_was_moved_is_noticed():
    w, _, step = recorded_product(forget=True)
    w.data = device.move(w.data, "cpu")
    with pytest.raises(
        DeviceError, match=r"^expected each parameter where .* of shape \(2,\) that"
    ):
        step()
    w.data = device.move(w.data, "cuda")
    with pytest.raises(DeviceError, match=r"or record anew\.$"):
        step()
