"""Speed on a GPU, beside PyTorch on the same card in the same run.

    pip install torch
    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --only layers          one part: ops, launches, networks, layers
    python benchmarks/gpu.py --only conv4           rows whose name contains this
    python benchmarks/gpu.py --tf32 --only layers   both sides with TF32 allowed

PyTorch runs eagerly, in float32 with TF32 off, and cuDNN may look for its fastest algorithm. With
--tf32 both sides may use TF32, in PyTorch for matrix products as well. Both sides take turns. What
a pass or an op takes is measured on the card, by events around a block of calls; what a launch, a
training step or a prediction takes, by the clock, from an idle card to an idle card, for there
Python's share counts.

* ops: GB/s of the bytes that the definition must move, beside a copy on the card of as many. Calls
  on small arrays take Python longer than the card; so the launches are recorded, and what the
  card takes to repeat them counts for the bytes. The milliseconds beside PyTorch's are of calls.
* launches: what one call costs where there is nothing to compute.
* networks: training steps and a prediction, and the most memory that their arrays held.
* layers: TFLOP/s of the definition and their share of the card's rate in FP32, or with --tf32 in
  TF32. That rate is what PyTorch's product of two 8192x8192 matrices (cuBLAS) reaches here, not the
  data sheet's.

The shortest part comes first, and the figures are written after each row: a run that is cut short
leaves what it measured. After --limit seconds no further row begins, and those left out are named;
all of it is made to take less than six minutes on an H100, compiling included. A row that fails is
reported and ends nothing. With --dry the sizes are tiny and PyTorch is left out, so that the
program can be tried in Numba's simulator: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import memory
import numpy as np
from layers import LAYERS, Layer
from side_by_side import median, paired_ratio, parser, table, write_json

import tinydilate as td
from tinydilate import device, gpu_checkup, models, nn, optim
from tinydilate import functional as F
from tinydilate.config import Config
from tinydilate.data import digits
from tinydilate.errors import DeviceError
from tinydilate.functional import convolution
from tinydilate.kernel import KERNELS, Launch, watching

BIG, DEMO = (1, 64, 498, 498), (16, 11, 64, 64)  # conv1_1 of a 500x500 crop; the demo's logits
SCORES, CELLS = (1, 21, 500, 500), (1, 21, 63, 63)  # of an image, and as a front end leaves them
PARAMETERS = 10_000_000
BLOCK = 0.02  # seconds that a block of calls should take, about
Run = Callable[[], Any]


class Setting(NamedTuple):
    """What every part is given."""

    torch: Any  # the module, or None in a dry run
    repeats: int
    dry: bool
    wanted: Callable[[str, str], bool]  # of a part and the name of a row
    done: Callable[[str, list[dict[str, Any]]], None]  # told of a part's rows after each
    tf32: bool = False  # on both sides


# ---- measuring -------------------------------------------------------------------------------


def ours_on_the_card(run: Run, calls: int) -> float:
    """Seconds a call of tinydilate, by events."""

    def block() -> None:
        for _ in range(calls):
            run()

    return device.seconds(block) / calls


def theirs_on_the_card(torch: Any, run: Run, calls: int) -> float:
    """Seconds a call of PyTorch, by events."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(calls):
        run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000 / calls


def by_the_clock(wait: Run, run: Run, calls: int) -> float:
    """Seconds a call from an idle card to an idle card."""
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - begin) / calls


def compare(
    setting: Setting, ours: Run, theirs: Run | None, clock: bool = False, calls: int = 0
) -> dict[str, Any]:
    """Milliseconds of both sides, in turns, and the ratio of PyTorch's to ours."""
    torch = setting.torch
    clocks: dict[str, Callable[[int], float]] = {}
    if clock:
        clocks["tinydilate"] = lambda calls: by_the_clock(device.synchronize, ours, calls)
    else:
        clocks["tinydilate"] = lambda calls: ours_on_the_card(ours, calls)
    if torch is not None and theirs is not None:
        if clock:
            clocks["torch"] = lambda calls: by_the_clock(torch.cuda.synchronize, theirs, calls)
        else:
            clocks["torch"] = lambda calls: theirs_on_the_card(torch, theirs, calls)
    ours()  # compiles
    for measure in clocks.values():  # fills caches and pools, lets cuDNN choose
        measure(1)
    if not calls:
        calls = max(1, min(50, int(BLOCK / max(1e-6, clocks["tinydilate"](1)))))
    seconds: dict[str, list[float]] = {side: [] for side in clocks}
    for _ in range(setting.repeats):
        for side, measure in clocks.items():
            seconds[side].append(measure(1 if setting.dry else calls))
    figures: dict[str, Any] = {f"{side}_ms": median(s) * 1e3 for side, s in seconds.items()}
    if "torch" in seconds:
        ratio = paired_ratio(seconds["torch"], seconds["tinydilate"])
        figures["torch_over_tinydilate"] = ratio
    return figures


def by_the_card(run: Run, calls: int = 20) -> float | None:
    """Milliseconds a call that the card takes by itself: the launches recorded, and repeated.

    None for what cannot be recorded, such as an optimiser's step.
    """
    run()  # makes the tables that its kernels keep
    try:
        recorded = device.capture(lambda: [run() for _ in range(calls)][-1])
    except DeviceError:
        return None
    device.repeat(recorded)
    times = [device.seconds(device.repeat, recorded) for _ in range(5 if calls > 1 else 1)]
    return median(times) / calls * 1e3


def attempt(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row's figures, or why it has none."""
    try:
        figures = measure()
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        figures = {"failed": f"{type(error).__name__}: {reason:.200}"}
    finally:
        gc.collect()
    print(f"  {name}: {figures.get('failed') or shown(figures)}", flush=True)
    return {"name": name, **figures}


def shown(figures: dict[str, Any]) -> str:
    ratio = figures.get("torch_over_tinydilate")
    beside = f", PyTorch / ours {ratio:.2f}" if ratio else ""
    return f"{figures['tinydilate_ms']:.3f} ms{beside}"


# ---- numbers for both sides ------------------------------------------------------------------


def numbers(setting: Setting, shape: tuple[int, ...], seed: int = 0) -> tuple[Any, Any]:
    """Random float32 on the card: our array, and PyTorch's, which shares the memory."""
    if setting.torch is None:
        array = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return device.move(array, "cuda"), None
    generator = setting.torch.Generator("cuda").manual_seed(seed)
    theirs = setting.torch.randn(shape, device="cuda", generator=generator)
    return device.adopt(theirs), theirs


def check(setting: Setting, ours: Any, theirs: Any) -> None:
    """Stop a row whose two sides compute different things."""
    if theirs is None:
        return
    most = 2e-3 if setting.tf32 else 1e-3
    mine = ours.data if isinstance(ours, td.Tensor) else ours
    mine = setting.torch.as_tensor(mine, device="cuda").reshape(theirs.shape)
    error = float(abs(mine - theirs).max() / abs(theirs).max())
    if not error < most:
        raise ValueError(f"the results differ by {error:.1e} of the largest number")


# ---- convolution layers ----------------------------------------------------------------------

PASSES = ("forward", "grad_input", "grad_weight")


def our_passes(layer: Layer, arrays: list[Any]) -> dict[str, Run]:
    x, w, b, grad = arrays
    window, size = layer.window, x.shape[2:]
    return {
        "forward": lambda: convolution.conv2d_forward(x, w, b, window),
        "grad_input": lambda: convolution.conv2d_grad_input(grad, w, size, window),
        "grad_weight": lambda: convolution.conv2d_grad_weight(x, grad, window),
    }


def their_passes(torch: Any, layer: Layer, arrays: list[Any]) -> dict[str, Run]:
    x, w, b, grad = arrays
    geometry = ([1, 1], [layer.padding] * 2, [layer.dilation] * 2, False, [0, 0], 1)
    aten = torch.ops.aten

    def backward(mask: list[bool]) -> Any:
        found = aten.convolution_backward(grad, x, w, [len(w)], *geometry, mask)
        return found[0] if mask[0] else found[1]

    return {
        "forward": lambda: aten.convolution(x, w, b, *geometry),
        "grad_input": lambda: backward([True, False, False]),
        "grad_weight": lambda: backward([False, True, False]),
    }


def measured_rate(setting: Setting) -> float | None:
    """TFLOP/s: PyTorch's product of two large matrices, the fastest of several."""
    if setting.torch is None:
        return None
    size = 8192
    a, b = (setting.torch.randn(size, size, device="cuda") for _ in range(2))
    runs = [theirs_on_the_card(setting.torch, lambda: a @ b, 3) for _ in range(5)]
    return 2 * size**3 / min(runs) / 1e12


def layers(setting: Setting) -> dict[str, Any]:
    """Every layer in its three passes."""
    rate, kind = measured_rate(setting), "TF32" if setting.tf32 else "FP32"
    if rate is not None:
        print(f"{kind} of this card, by PyTorch's matrix product: {rate:.1f} TFLOP/s")
    chosen = [Layer("tiny", 1, 2, 3, 5, 3, 1, 0)] if setting.dry else LAYERS
    rows = []
    for layer in (layer for layer in chosen if setting.wanted("layers", layer.name)):
        out = layer.window.output_size((layer.size, layer.size))
        shapes = (
            (layer.batch, layer.channels, layer.size, layer.size),
            (layer.filters, layer.channels, layer.kernel, layer.kernel),
            (layer.filters,),
            (layer.batch, layer.filters, *out),
        )
        pairs = [numbers(setting, shape, seed) for seed, shape in enumerate(shapes)]
        ours = our_passes(layer, [mine for mine, _ in pairs])
        theirs: dict[str, Any] = dict.fromkeys(PASSES)
        if setting.torch is not None:
            theirs = their_passes(setting.torch, layer, [other for _, other in pairs])
        for name in PASSES:

            def measure(name: str = name, ours: Any = ours, theirs: Any = theirs) -> Any:
                check(setting, ours[name](), theirs[name] and theirs[name]())
                return compare(setting, ours[name], theirs[name])

            row = attempt(f"{layer.name}, {name}", measure)
            if "failed" not in row:
                speed = layer.flop / row["tinydilate_ms"] / 1e9
                row |= {"tflops": speed, "share_of_rate": rate and speed / rate}
            rows.append(row | {"layer": layer.name, "pass": name, "gflop": layer.flop / 1e9})
            setting.done("layers", rows)
    return {f"{kind.lower()}_tflops": rate, "rows": rows, **over_a_gflop(rows)}


def over_a_gflop(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean and smallest ratio of the layers with more than one GFLOP."""
    ratios = [r["torch_over_tinydilate"] for r in rows if r["gflop"] > 1 and has_ratio(r)]
    if not ratios:
        return {}
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return {"geometric_mean": mean, "smallest_ratio": min(ratios), "over_a_gflop": len(ratios)}


def has_ratio(row: dict[str, Any]) -> bool:
    return "torch_over_tinydilate" in row


# ---- ops that move memory --------------------------------------------------------------------


class Op(NamedTuple):
    """One op on one size: what both sides run, and the bytes that it must move."""

    name: str
    ours: Run
    theirs: Run | None
    bytes: int
    exact: bool = True  # whether the results are to be compared


def backward_of(out: td.Tensor, grad: Any) -> Run:
    """The kernel calls that a result's backward pass consists of."""
    calls: list[Launch] = []
    with watching(calls.append):
        out.backward(td.tensor(grad))
    kernels = [(KERNELS[call.kernel], call.arguments) for call in calls]
    return lambda: [kernel(*arguments) for kernel, arguments in kernels][-1]


Makers = Iterator[tuple[str, Callable[[], Op]]]


def ops_of(setting: Setting) -> Makers:
    """Names, and what makes each op's row: an op without a kernel fails by itself."""
    torch = setting.torch
    big = (1, 2, 4, 4) if setting.dry else BIG
    logits = (1, 3, 4, 4) if setting.dry else DEMO
    scores = (1, 3, 5, 5) if setting.dry else SCORES
    cells, times = ((1, 2, 2, 2), 2) if setting.dry else (CELLS, 8)
    border = [1 if setting.dry else 10] * 4
    functional: Any = torch and torch.nn.functional

    def there(x: Any, function: Callable[[Any], Any]) -> Run | None:
        return None if x is None else lambda: function(x)

    def forward(name: str, shape: Any, ours: Any, theirs: Any, moved: float) -> Op:
        x, t = numbers(setting, shape)
        plain = td.tensor(x)
        return Op(name, lambda: ours(plain), there(t, theirs), int(moved * x.nbytes))

    def backward(name: str, shape: Any, ours: Any, theirs: Any, moved: float) -> Op:
        x, t = numbers(setting, shape)
        out = ours(td.tensor(x, requires_grad=True))
        grad, t_grad = numbers(setting, out.shape, 1)
        run = backward_of(out, grad)
        if t is None:
            return Op(name, run, None, int(moved * x.nbytes))
        leaf = t.clone().requires_grad_()
        result = theirs(leaf)

        def other() -> Any:
            return torch.autograd.grad(result, leaf, t_grad, retain_graph=True)[0]

        return Op(name, run, other, int(moved * x.nbytes))

    enlarged = [2 * side for side in logits[2:]]

    def cross_entropy(shape: Any) -> tuple[Any, ...]:
        labels = np.random.default_rng(1).integers(0, shape[1], (shape[0], *shape[2:]))
        targets = td.tensor(labels).to("cuda")
        t_labels = torch and torch.from_numpy(labels).cuda()
        label = labels.itemsize / (4 * shape[1])  # its bytes, in those of its pixel's scores
        return (
            shape,
            lambda x: F.cross_entropy(x, targets),
            lambda t: functional.cross_entropy(t, t_labels),
            *(1 + label, 2 + label),
        )

    pairs: dict[str, tuple[Any, Any, Any, float, float]] = {
        "relu": (big, F.relu, torch and torch.relu, 2, 3),
        "max_pool 2x2/2": (
            big,
            lambda x: F.max_pool2d(x, 2),
            lambda t: functional.max_pool2d(t, 2),
            *(1 + 3 / 4, 1 + 3 / 4),  # a quarter of results, each with 8 bytes of its place
        ),
        "pad zeros 10": (
            big,
            lambda x: F.pad(x, border),
            lambda t: functional.pad(t, border),
            *(2, 2),
        ),
        "pad reflect 10": (
            big,
            lambda x: F.pad(x, border, mode="reflect"),
            lambda t: functional.pad(t, border, mode="reflect"),
            *(2, 2),
        ),
        "avg_pool 2x2/2": (
            big,
            lambda x: F.avg_pool2d(x, 2),
            lambda t: functional.avg_pool2d(t, 2),
            *(1 + 1 / 4, 1 + 1 / 4),
        ),
        "softmax": (
            logits,
            lambda x: F.softmax(x, 1),
            lambda t: torch.softmax(t, 1),
            *(2, 3),
        ),
        "cross_entropy": cross_entropy(logits),
        "bilinear x2": (
            logits,
            lambda x: F.interpolate(x, size=enlarged, mode="bilinear"),
            lambda t: functional.interpolate(t, size=enlarged, mode="bilinear"),
            *(5, 5),
        ),
        "softmax of an image": (
            scores,
            lambda x: F.softmax(x, 1),
            lambda t: torch.softmax(t, 1),
            *(2, 3),
        ),
        "cross_entropy of an image": cross_entropy(scores),
        "bilinear x8": (
            cells,
            lambda x: F.interpolate(x, scale_factor=times, mode="bilinear"),
            lambda t: functional.interpolate(t, scale_factor=times, mode="bilinear"),
            *(65, 65),
        ),
    }
    for op, (shape, ours, theirs, moved, moved_back) in pairs.items():
        name = f"{op} forward"
        yield name, lambda n=name, a=(shape, ours, theirs, moved): forward(n, *a)  # type: ignore[misc]
        name = f"{op} backward"
        yield name, lambda n=name, a=(shape, ours, theirs, moved_back): backward(n, *a)  # type: ignore[misc]
    yield "add", lambda: addition(setting, big)
    yield "bias gradient", lambda: bias_gradient(setting, big)
    yield "SGD, momentum 0.9", lambda: optimiser(setting, "SGD, momentum 0.9", 5)
    yield "Adam", lambda: optimiser(setting, "Adam", 7)


def addition(setting: Setting, shape: tuple[int, ...]) -> Op:
    (x, t), (y, u) = numbers(setting, shape), numbers(setting, shape, 1)
    a, b = td.tensor(x), td.tensor(y)
    return Op("add", lambda: F.add(a, b), None if t is None else lambda: t + u, 3 * x.nbytes)


def bias_gradient(setting: Setting, shape: tuple[int, ...]) -> Op:
    """The sum over all images and pixels, which reads every number and writes next to nothing."""
    x, t = numbers(setting, shape)
    total = KERNELS["sum_to_shape"]

    def theirs() -> Any:
        return t.sum((0, 2, 3), keepdim=True)

    run = None if t is None else theirs
    return Op("bias gradient", lambda: total(x, (1, shape[1], 1, 1)), run, x.nbytes)


def optimiser(setting: Setting, name: str, arrays: int) -> Op:
    """One step; SGD reads w, g, v and writes w, v; Adam reads w, g, m, s and writes w, m, s."""
    (x, t), (g, u) = (numbers(setting, (10 if setting.dry else PARAMETERS,), n) for n in (0, 1))
    options = {"lr": 1e-3, "momentum": 0.9} if name[:3] == "SGD" else {"lr": 1e-3}
    kind = name.split(",")[0]
    w = td.tensor(x.copy(), requires_grad=True)
    w.grad = td.tensor(g)
    step = getattr(optim, kind)([w], **options).step
    other = None
    if t is not None:
        p = setting.torch.nn.Parameter(t.clone())
        p.grad = u
        other = getattr(setting.torch.optim, kind)([p], **options).step
    return Op(name, step, other, arrays * x.nbytes, exact=False)


def ops(setting: Setting) -> dict[str, Any]:
    """Ops that do little arithmetic, in GB/s beside a copy."""
    rows = []
    for name, make in ops_of(setting):
        if not setting.wanted("ops", name):
            continue

        def measure(make: Callable[[], Op] = make) -> dict[str, Any]:
            op = make()
            if op.exact:
                check(setting, op.ours(), op.theirs and op.theirs())
            figures = compare(setting, op.ours, op.theirs)
            return figures | beside_a_copy(setting, op, figures["tinydilate_ms"])

        rows.append(attempt(name, measure))
        setting.done("ops", rows)
    return {"rows": rows}


def beside_a_copy(setting: Setting, op: Op, called: float) -> dict[str, Any]:
    """Rates of an op, one call of which takes ``called`` milliseconds, and of a copy."""
    source = device.empty((max(1, op.bytes // 8),), np.float32)
    calls = 1 if setting.dry else 20
    card, copying = by_the_card(op.ours, calls), by_the_card(source.copy, calls)
    if card is None or copying is None:  # both by events around calls, then
        card, copying = called, compare(setting, source.copy, None)["tinydilate_ms"]
    return {
        "card_ms": card,
        "gb_per_s": op.bytes / card / 1e6,
        "copy_gb_per_s": op.bytes / copying / 1e6,
        "share_of_copy": copying / card,
        "bytes": op.bytes,
    }


# ---- launches --------------------------------------------------------------------------------


def launches(setting: Setting) -> dict[str, Any]:
    """One call where there is nothing to compute, from Python's side."""
    (x, t), (y, u) = numbers(setting, (1,)), numbers(setting, (1,), 1)
    a, b = td.tensor(x), td.tensor(y)
    torch, calls = setting.torch, 2000
    sides: dict[str, tuple[Run, Any]] = {
        "relu kernel": (lambda: KERNELS["relu_forward"](x), torch and (lambda: torch.relu(t))),
        "F.relu": (lambda: F.relu(a), torch and (lambda: torch.nn.functional.relu(t))),
        "F.add": (lambda: F.add(a, b), torch and (lambda: torch.add(t, u))),
        "Adam, 28 parameters": many_parameters(setting, 28),
    }
    rows = []
    for name, (ours, theirs) in sides.items():
        if setting.wanted("launches", name):

            def measure(ours: Run = ours, theirs: Any = theirs) -> dict[str, Any]:
                return compare(setting, ours, theirs, clock=True, calls=calls)

            rows.append(attempt(name, measure))
            setting.done("launches", rows)
    return {"rows": rows}


def many_parameters(setting: Setting, count: int) -> tuple[Run, Run | None]:
    """A step of Adam for parameters of one number each; the demo's networks have 28."""
    pairs = [numbers(setting, (1,), seed) for seed in range(count)]
    ours = [td.tensor(x.copy(), requires_grad=True) for x, _ in pairs]
    for w, (x, _) in zip(ours, pairs, strict=True):
        w.grad = td.tensor(x)
    step = optim.Adam(ours).step
    if setting.torch is None:
        return step, None
    theirs = [setting.torch.nn.Parameter(t.clone()) for _, t in pairs]
    for p, (_, t) in zip(theirs, pairs, strict=True):
        p.grad = t
    return step, setting.torch.optim.Adam(theirs).step


# ---- networks --------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A network and what it is given; without labels it predicts."""

    network: nn.Module
    images: Any
    labels: Any = None
    upsampled: bool = False
    adam: bool = False
    recorded: bool = False  # our gradients, as a CUDA graph


def tiny() -> Problem:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU())
    images = np.random.default_rng(0).standard_normal((1, 1, 5, 5), np.float32)
    return Problem(network, images, np.zeros((1, 3, 3), np.int64))


def demo() -> Problem:
    """The demo's network with its context, on 16 scenes."""
    classes = len(digits.CLASSES)
    context = models.context(classes, dilations=Config().dilations)
    images, labels = digits.scenes("train", 16, progress=False)
    network = nn.Sequential(models.small_front_end(classes), context)
    return Problem(network, images, labels.astype(np.int64), upsampled=True, adam=True)


def recorded_demo() -> Problem:
    """The same with `tinydilate.record`; PyTorch's side stays eager."""
    return demo()._replace(recorded=True)


def crop() -> Problem:
    """The published front end and the Basic context on a crop of 500x500."""
    return Problem(memory.crop_network(rng=0), memory.image(500), memory.labels())


def whole_image() -> Problem:
    """The published VOC network, front end and Large context, on 900x900."""
    return Problem(memory.voc_network(rng=0).eval(), memory.image(900))


def our_run(problem: Problem) -> Run:
    """A training step, or a prediction; everything is on the card before."""
    network = problem.network.to("cuda")
    images = td.tensor(problem.images).to("cuda")
    if problem.labels is None:

        def predict() -> Any:
            with td.no_grad():
                return network(images)

        return predict
    labels = td.tensor(problem.labels).to("cuda")
    if problem.adam:
        optimizer: Any = optim.Adam(network.parameters(), lr=1e-3)
    else:
        optimizer = optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def gradients() -> Any:
        optimizer.zero_grad()
        scores = network(images)
        if problem.upsampled:
            scores = F.interpolate(scores, size=labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(scores, labels, ignore_index=digits.IGNORE)
        loss.backward()
        return loss

    first = td.record(gradients) if problem.recorded else gradients

    def step() -> Any:
        loss = first()
        optimizer.step()
        return loss

    return step


def their_run(torch: Any, problem: Problem) -> Run:
    """The same in PyTorch, with the same weights."""
    from train_step import as_torch

    network = as_torch(problem.network).cuda().train(problem.labels is not None)
    images = torch.from_numpy(problem.images).cuda()
    if problem.labels is None:

        def predict() -> Any:
            with torch.no_grad():
                return network(images)

        return predict
    labels = torch.from_numpy(problem.labels).cuda()
    options = {"lr": 1e-3} if problem.adam else {"lr": 1e-3, "momentum": 0.9}
    kind = torch.optim.Adam if problem.adam else torch.optim.SGD
    optimizer, functional = kind(network.parameters(), **options), torch.nn.functional

    def step() -> Any:
        optimizer.zero_grad()
        scores = network(images)
        if problem.upsampled:
            scores = functional.interpolate(scores, size=labels.shape[1:], mode="bilinear")
        loss = functional.cross_entropy(scores, labels, ignore_index=digits.IGNORE)
        loss.backward()
        optimizer.step()
        return loss

    return step


def networks(setting: Setting) -> dict[str, Any]:
    """Training steps and a prediction, by the clock, and their memory."""
    problems: dict[str, tuple[Callable[[], Problem], int]] = {
        "training step, demo with context": (demo, 20),
        "the same, recorded": (recorded_demo, 20),
        "prediction, front end + Large context, 900x900": (whole_image, 3),
        "training step, front end + Basic context, 500x500": (crop, 3),
    }
    if setting.dry:
        problems = {"training step, tiny": (tiny, 1)}
    rows = []
    for name, (make, calls) in problems.items():
        if not setting.wanted("networks", name):
            continue

        def measure(make: Callable[[], Problem] = make, calls: int = calls) -> dict[str, Any]:
            problem, torch = make(), setting.torch
            theirs = None if torch is None else their_run(torch, problem)  # copies the weights
            device.cuda_empty_cache()  # counts the peak anew, before anything is recorded
            ours = our_run(problem)
            most = {"tinydilate_peak_mib": peak_of_ours(ours)}
            if theirs is not None:
                most["torch_peak_mib"] = peak_of_theirs(torch, theirs)
            return compare(setting, ours, theirs, clock=True, calls=calls) | most

        rows.append(attempt(name, measure))
        setting.done("networks", rows)
        gc.collect()
        device.cuda_empty_cache()
        if setting.torch is not None:
            setting.torch.cuda.empty_cache()
    return {"rows": rows}


def peak_of_ours(run: Run) -> float:
    """MiB that arrays held at most in two runs and before, weights included."""
    for _ in range(2):
        run()
    device.synchronize()
    return device.cuda_statistics().peak / 2**20


def peak_of_theirs(torch: Any, run: Run) -> float:
    """The same of PyTorch's allocator, once cuDNN has tried its algorithms and chosen."""
    run()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated()) / 2**20


# ---- the report ------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "ops": ops,
    "launches": launches,
    "networks": networks,
    "layers": layers,
}
COLUMNS: dict[str, list[tuple[str, str, float, str]]] = {  # heading, key, factor, format
    "layers": [
        ("TFLOP/s", "tflops", 1, ".2f"),
        ("of the rate", "share_of_rate", 1, ".0%"),
        ("PyTorch / ours", "torch_over_tinydilate", 1, ".2f"),
    ],
    "ops": [
        ("call, ms", "tinydilate_ms", 1, ".3f"),
        ("card, ms", "card_ms", 1, ".3f"),
        ("GB/s", "gb_per_s", 1, ".0f"),
        ("of a copy", "share_of_copy", 1, ".0%"),
        ("PyTorch / ours", "torch_over_tinydilate", 1, ".2f"),
    ],
    "launches": [
        ("ours, us", "tinydilate_ms", 1000, ".1f"),
        ("PyTorch, us", "torch_ms", 1000, ".1f"),
        ("PyTorch / ours", "torch_over_tinydilate", 1, ".2f"),
    ],
    "networks": [
        ("ours, ms", "tinydilate_ms", 1, ".2f"),
        ("PyTorch, ms", "torch_ms", 1, ".2f"),
        ("PyTorch / ours", "torch_over_tinydilate", 1, ".2f"),
        ("ours, MiB", "tinydilate_peak_mib", 1, ",.0f"),
        ("PyTorch, MiB", "torch_peak_mib", 1, ",.0f"),
    ],
}


def as_table(part: str, rows: list[dict[str, Any]]) -> str:
    """A part's rows, with a dash where a figure is missing and the reason where all are."""
    columns = COLUMNS[part]
    cells: list[list[Any]] = []
    for row in rows:
        values = [(row.get(key), factor, form) for _, key, factor, form in columns]
        texts = [
            "-" if value is None else format(value * factor, form) for value, factor, form in values
        ]
        cells.append([row["name"], *texts])
    text = table([part, *(heading for heading, *_ in columns)], cells)
    failed = [f"{row['name']}: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join([text, *failed])


def what_is_missing(dry: bool) -> str | None:
    """Why the figures cannot be taken here, and the next step."""
    if dry:
        problem = device.cuda_problem()
        return problem and f"{problem} Or set NUMBA_ENABLE_CUDASIM=1 for a dry run."
    if device.SIMULATED:
        return "Expected a GPU; the simulator is on. Unset NUMBA_ENABLE_CUDASIM, or add --dry."
    facts = gpu_checkup.look()
    if not facts.cards:
        return (
            f"Expected a GPU; {gpu_checkup.judge(facts)[0].found}. Run this where there is one, or "
            "try the program itself: NUMBA_ENABLE_CUDASIM=1 python benchmarks/gpu.py --dry"
        )
    if device.cuda_problem():
        return f"Expected a GPU to compute on; {device.cuda_problem()}"
    if find_spec("torch") is None:
        return f"Expected PyTorch to compare with: {sys.executable} -m pip install torch"
    return None


def load_torch(tf32: bool) -> Any:
    """PyTorch, with plain FP32 unless TF32 is allowed; cuDNN may try its algorithms."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("Expected a PyTorch that sees the GPU; this one is built without CUDA.")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    return torch


def main(arguments: list[str] | None = None) -> int:
    """Read the options, run the parts, print and write the figures."""
    options = parse(arguments)
    missing = what_is_missing(options.dry)
    if missing:
        print(missing)
        return 2
    before = td.get_tf32()
    try:
        td.set_tf32(options.tf32)
    except DeviceError as error:
        print(error)
        return 2
    try:
        return run_parts(options)
    finally:
        # TINYDILATE_TF32=on means nothing to a card that cannot; that costs no measurement.
        with suppress(DeviceError):
            td.set_tf32(before)


def run_parts(options: argparse.Namespace) -> int:
    """Everything that the options ask for."""
    begin = time.monotonic()
    td.manual_seed(0)

    figures: dict[str, Any] = {
        "gpu": gpu_checkup.describe(),
        "dry": options.dry,
        "tf32": options.tf32,
        "left_out": [],
    }

    def wanted(part: str, name: str) -> bool:
        chosen = options.only in (part, "")
        chosen = chosen or (options.only not in PARTS and options.only in name)
        if chosen and time.monotonic() > begin + options.limit:
            figures["left_out"].append(name)
            return False
        return chosen

    def done(part: str, rows: list[dict[str, Any]]) -> None:
        write_json(options.json, figures | {part: {"rows": rows}}, finished=False)

    torch = None if options.dry else load_torch(options.tf32)
    repeats = 1 if options.dry else options.repeats
    setting = Setting(torch, repeats, options.dry, wanted, done, options.tf32)
    for part, measure in PARTS.items():
        if options.only in PARTS and options.only != part:
            continue
        print(f"\n{part}", flush=True)
        figures[part] = measure(setting)
        figures["seconds"] = round(time.monotonic() - begin, 1)
        write_json(options.json, figures, finished=False)
    write_json(options.json, figures)
    for part in (part for part in PARTS if figures.get(part, {}).get("rows")):
        print(f"\n{as_table(part, figures[part]['rows'])}")
    mean = figures.get("layers", {})
    if "geometric_mean" in mean:
        print(
            f"\n{mean['over_a_gflop']} passes of more than one GFLOP: geometric mean "
            f"{mean['geometric_mean']:.2f}, smallest ratio {mean['smallest_ratio']:.2f}"
        )
    if figures["left_out"]:
        print(f"\nleft out after {options.limit:.0f} s: {', '.join(figures['left_out'])}")
    print(f"\n{figures['gpu']['device']}, {figures['seconds']:.0f} s")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0])
    made.set_defaults(repeats=5)
    made.add_argument("--only", default="", help="a part, or rows whose name contains this")
    made.add_argument("--limit", type=float, default=330, help="seconds (default: 330)")
    made.add_argument("--tf32", action="store_true", help="allow TF32, on both sides")
    made.add_argument("--dry", action="store_true", help="tiny sizes, without PyTorch")
    return made.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
