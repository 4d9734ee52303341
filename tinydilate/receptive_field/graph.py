"""What every tensor of a network sees of the image, worked out over the recorded graph.

The network is run once on the meta device, on an image that requires grad, so that every op is
recorded and nothing is computed. Then the ops are visited in the order in which they were made.
Each asks its rule what it reads and joins what its inputs see (see `tinydilate.field`), once for
places without end and once for the places that there are, cut off at every layer's border.

Rows and columns are followed apart, because what nearly every network sees is a product of rows
and columns: two short lists instead of a map. Where branches join, it may become a union of such
products (a 1x3 layer beside a 3x1 layer sees a cross), so every tensor has a list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from tinydilate import nn
from tinydilate.autograd import Op, Tensor, ops_behind
from tinydilate.device import MetaArray
from tinydilate.errors import ConfigError, DeviceError, FieldError, ShapeError, TinydilateError
from tinydilate.field import ITSELF, Field, Line
from tinydilate.functional.padding import index_map
from tinydilate.receptive_field.rules import RULES, Along, Reading
from tinydilate.window import Pair

# ---- what is seen ----------------------------------------------------------------------------


class Span(NamedTuple):
    """What outputs see along one axis.

    Attributes
    ----------
    line : Line
        Of places without end: nothing is cut off.
    inside : tuple of int
        For each output that there is, the bits of the image's positions that it sees.
    whole : tuple of bool
        For each output that there is, whether nothing was cut off on its way to the image.
    """

    line: Line
    inside: tuple[int, ...]
    whole: tuple[bool, ...]

    def through(self, along: Along, outputs: int) -> Span:
        """What the outputs of one more op see."""
        line = self.line.through(along.reader)
        reads = [list(along.reader.inputs(i)) for i in range(outputs)]
        before = max(0, -min((min(read) for read in reads if read), default=0))
        after = max(0, max((max(read) for read in reads if read), default=0) + 1 - len(self.inside))
        shown = index_map(len(self.inside), before, after, along.edge).tolist()
        seen = [*self.inside, 0]  # the last one is nothing, for positions that show nothing
        inside = []
        for read in reads:
            bits = 0
            for position in read:
                bits |= seen[shown[position + before]]
            inside.append(bits)
        there = dict(enumerate(self.whole))
        whole = [all(there.get(position, False) for position in read) for read in reads]
        return Span(line, tuple(inside), tuple(whole))

    def with_(self, other: Span) -> Span:
        """What outputs see that see both."""
        inside = tuple(a | b for a, b in zip(self.inside, other.inside, strict=True))
        whole = tuple(a and b for a, b in zip(self.whole, other.whole, strict=True))
        return Span(self.line.with_(other.line), inside, whole)

    def within(self, other: Span) -> bool:
        """Whether no output sees anything here that it does not see there."""
        both = zip(self.inside, other.inside, strict=True)
        if not all(a & b == a for a, b in both) or not self.line.within(other.line):
            return False
        # What is cut off here has to be cut off there too: it would be forgotten with this one.
        return all(a or not b for a, b in zip(self.whole, other.whole, strict=True))


class Product(NamedTuple):
    """All pixels in certain rows and certain columns."""

    rows: Span
    columns: Span

    def through(self, reading: Reading, size: Pair) -> Product:
        """What the outputs of one more op see; ``size`` is their number of rows and columns."""
        rows = self.rows.through(reading.rows, size[0])
        alike = self.rows is self.columns and reading.rows == reading.columns
        if alike and size[0] == size[1]:
            return Product(rows, rows)
        return Product(rows, self.columns.through(reading.columns, size[1]))

    def within(self, other: Product) -> bool:
        """Whether the other product holds all of this one."""
        return self.rows.within(other.rows) and self.columns.within(other.columns)

    def merged(self, other: Product) -> Product | None:
        """The union of both, if it is a product."""
        if self.rows == other.rows and self.columns.line.stride == other.columns.line.stride:
            return Product(self.rows, self.columns.with_(other.columns))
        if self.columns == other.columns and self.rows.line.stride == other.rows.line.stride:
            return Product(self.rows.with_(other.rows), self.columns)
        return None


def union(products: Sequence[Product]) -> tuple[Product, ...]:
    """The same pixels in as few products as we can easily find."""
    kept: list[Product] = []
    for product in products:
        if not any(product.within(other) for other in kept):
            kept = [other for other in kept if not other.within(product)]
            kept.append(product)
    for a in kept:
        for b in kept:
            merged = a.merged(b) if a is not b else None
            if merged is not None:
                return union([merged, *(p for p in kept if p is not a and p is not b)])
    return tuple(kept)


class Seen(NamedTuple):
    """What a tensor sees of the image.

    Attributes
    ----------
    products : tuple of Product
        What it sees is their union.
    axes : (int, int)
        Which of the tensor's axes are rows and columns.
    trail : tuple of str
        The layers between the image and the tensor, along one path.
    """

    products: tuple[Product, ...]
    axes: Pair
    trail: tuple[str, ...]

    def line(self, axis: int) -> Line | None:
        """Along rows (0) or columns (1); None where branches of several strides were joined."""
        lines = [product[axis].line for product in self.products]
        if len({line.stride for line in lines}) > 1:
            return None
        whole = lines[0]
        for line in lines[1:]:
            whole = whole.with_(line)
        return whole


class Blind(NamedTuple):
    """Why there is no telling what a tensor sees."""

    reason: str


# ---- the run ---------------------------------------------------------------------------------


class Called(NamedTuple):
    """One call of a layer: a module without modules inside."""

    name: str
    type: str
    inputs: tuple[Any, ...]
    output: Tensor


class Run(NamedTuple):
    """A network's recorded graph.

    Attributes
    ----------
    image : Tensor
    output : Tensor
    calls : list of Called
        The layers in the order in which they ran.
    """

    image: Tensor
    output: Tensor
    calls: list[Called]


Model = nn.Module | Callable[[Tensor], Any]


def record(model: Model, image: Tensor) -> Run:
    """Run a network on an image, and keep its layers' calls.

    Raises
    ------
    FieldError
        If it fails, or does not return a tensor that depends on the image.
    """
    names = {id(m): n for n, m in model.named_modules()} if isinstance(model, nn.Module) else {}
    calls: list[Called] = []

    def watcher(call: nn.Call) -> None:
        result = first_of(call.output)
        if next(call.module.children(), None) is None and isinstance(result, Tensor):
            kind = type(call.module).__name__
            name = names.get(id(call.module)) or kind  # the network itself has no name
            calls.append(Called(name, kind, call.inputs, result))

    with nn.watching_modules(watcher):
        try:
            output = first_of(model(image))
        except DeviceError:
            raise
        except Exception as error:
            raise FieldError(
                f"expected a network that takes an image of shape {image.shape}; it failed on one, "
                f"with {type(error).__name__}: {error}"
            ) from error
    if not isinstance(output, Tensor) or not output.requires_grad:
        raise FieldError(
            "expected a network that returns a tensor computed from its image; got "
            f"{'a tensor that is not' if isinstance(output, Tensor) else type(output).__name__}. "
            "Compute with ops on tensors, outside no_grad and without detach or numpy."
        )
    return Run(image, output, calls)


def first_of(output: Any) -> Any:
    """A layer's result; pooling may return indices beside it."""
    return output[0] if isinstance(output, tuple) and output else output


def record_shapes(model: Model, input_size: Sequence[int]) -> Run:
    """Run a network on shapes alone; a function that brings arrays of its own, on zeros.

    Raises
    ------
    ShapeError
        If the size is not one of an image.
    FieldError
        See `record`; for an image that is too small, with a size that would do.
    """
    size = check_size(input_size)
    if isinstance(model, type):
        raise ConfigError(
            f"expected a network; got the class {model.__name__}. Make one: {model.__name__}(...)."
        )
    if not isinstance(model, nn.Module):
        try:
            return record(model, Tensor(MetaArray(size), requires_grad=True))
        except DeviceError:
            return record(model, Tensor(np.zeros(size, np.float32), requires_grad=True))
    shadow = nn.as_meta(model).requires_grad_(False)
    parameters = [*shadow.parameters()]
    dtype = parameters[0].dtype if parameters else np.dtype(np.float32)

    def run(size: tuple[int, ...]) -> Run:
        return record(shadow, Tensor(MetaArray(size, dtype), requires_grad=True))

    try:
        return run(size)
    except FieldError as error:
        if not isinstance(error.__cause__, ShapeError):
            raise
        enough = _size_that_does(run, size)
        if enough is None:
            raise
        raise FieldError(f"{error} An image of shape {enough} would do.") from error


def _size_that_does(
    run: Callable[[tuple[int, ...]], Run], size: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The size with rows and columns added, as many to each, until the network takes it."""

    def works(more: int) -> bool:
        try:
            run((*size[:-2], size[-2] + more, size[-1] + more))
        except TinydilateError:
            return False
        return True

    more = 1
    while not works(more):
        more *= 2
        if more > 8192:
            return None
    too_few = more // 2
    while more - too_few > 1:  # between the last that failed and the first that did
        middle = (more + too_few) // 2
        too_few, more = (too_few, middle) if works(middle) else (middle, more)
    return (*size[:-2], size[-2] + more, size[-1] + more)


def check_size(input_size: Sequence[int], axes: int = 2) -> tuple[int, ...]:
    """An input's size as a tuple.

    Raises
    ------
    ShapeError
        If it is not as many whole numbers of at least 1, with any before them: an image's two.
    """
    shape = getattr(input_size, "shape", ())
    if len(shape) > 1:  # an image in place of its size
        raise ShapeError(
            "expected an input size, such as (1, 3, 500, 500) for (N, C, H, W); got "
            f"{type(input_size).__name__} of shape {shape}. Pass its shape."
        )
    sizes = tuple(input_size) if isinstance(input_size, Iterable) else ()
    whole = all(isinstance(s, int | np.integer) and not isinstance(s, bool) for s in sizes)
    if len(sizes) < axes or not whole or min(sizes) < 1:
        raise ShapeError(
            "expected an input size of whole numbers of at least 1, such as (1, 3, 500, 500) for "
            f"(N, C, H, W); got {input_size!r}."
        )
    return tuple(map(int, sizes))


def ops_of(run: Run) -> list[tuple[Op, Tensor]]:
    """Every op between the image and a layer's or the network's output, with its result."""
    return ops_behind([run.output, *(call.output for call in run.calls)])


def names_of(run: Run) -> dict[int, str]:
    """Number of an op -> the layer that made it, for ops that a layer made."""
    names: dict[int, str] = {}
    for call in run.calls:
        given = {id(tensor) for tensor in call.inputs}
        waiting = [call.output]
        while waiting:
            tensor = waiting.pop()
            if id(tensor) not in given and tensor.op is not None and tensor.op.number not in names:
                names[tensor.op.number] = call.name
                waiting.extend(tensor.op.inputs)
    return names


# ---- the walk --------------------------------------------------------------------------------


def walk(
    run: Run, misaligned: str = "raise", unknown: str = "raise"
) -> dict[int | None, Seen | Blind]:
    """For each op by its number, what its result sees; ops that the image does not reach are out.

    The number None stands for the image itself. With ``unknown="mark"`` an op without a rule blinds
    what comes after it, with ``misaligned="union"`` branches need not be aligned.

    Raises
    ------
    FieldError
        If an op has no rule, or branches that meet are not aligned.
    """
    height, width = run.image.shape[-2:]
    rows = _each(height)
    columns = rows if width == height else _each(width)
    axes = run.image.ndim - 2, run.image.ndim - 1
    start = Seen((Product(rows, columns),), axes, ())
    names = names_of(run)
    seen: dict[int | None, Seen | Blind] = {None: start}
    for op, result in ops_of(run):
        name = names.get(op.number, type(op).__name__)
        inputs = [
            (n, seen[number_of(tensor)])
            for n, tensor in enumerate(op.inputs)
            if depends_on(run.image, tensor) and number_of(tensor) in seen
        ]
        if not inputs:
            continue
        if type(op) not in RULES and unknown == "mark":
            seen[op.number] = Blind(f"{name}: {type(op).__name__} has no rule")
        else:
            seen[op.number] = _seen_through(op, name, result.shape, inputs, misaligned)
    return seen


def number_of(tensor: Tensor) -> int | None:
    """Number of the op that made a tensor; None for a leaf."""
    return None if tensor.op is None else tensor.op.number


def depends_on(image: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is the image or may be computed from it: no other leaf."""
    return tensor is image or tensor.op is not None


def _each(size: int) -> Span:
    """The image along one axis: each position sees itself."""
    return Span(ITSELF, tuple(1 << i for i in range(size)), (True,) * size)


def _seen_through(
    op: Op,
    name: str,
    shape: tuple[int, ...],
    inputs: list[tuple[int, Seen | Blind]],
    misaligned: str,
) -> Seen | Blind:
    """What the result of an op sees, from what its inputs see."""
    rule = RULES.get(type(op))
    if rule is None:
        kind = type(op).__name__
        raise FieldError(
            f"expected ops whose reading is known; got {kind}, in {name}. Say which inputs "
            f"its outputs read: from tinydilate.receptive_field import rule, pointwise; then "
            f"@rule({kind}) on a function of (op, number, axes) that returns a Reading, such as "
            "pointwise(axes) for one that reads each place alone."
        )
    branches = []
    for number, sight in inputs:
        if isinstance(sight, Blind):
            return sight
        reading = rule(op, number, sight.axes)
        if isinstance(reading, str):
            return Blind(f"{name}: {reading}")
        size = shape[reading.axes[0]], shape[reading.axes[1]]
        try:
            products = tuple(product.through(reading, size) for product in sight.products)
        except FieldError as error:
            return Blind(f"{name}: {error}")
        trail = sight.trail if sight.trail[-1:] == (name,) else (*sight.trail, name)
        branches.append(Seen(products, reading.axes, trail))
    first = branches[0]
    if len(branches) == 1:
        return first
    for other in branches[1:]:
        if other.axes != first.axes:
            return Blind(f"{name}: images meet whose rows and columns lie along other axes")
        if misaligned == "raise":
            check_alignment(name, first, other)
    try:
        products = union([product for branch in branches for product in branch.products])
    except FieldError as error:
        return Blind(f"{name}: {error}")
    return Seen(products, first.axes, first.trail)


def check_alignment(name: str, first: Seen, second: Seen) -> None:
    """Refuse branches of which one output sees places that lie apart.

    Raises
    ------
    FieldError
        With the layers along both, and how many pixels apart they are.
    """
    fields = [[_field(branch.line(axis)) for axis in (0, 1)] for branch in (first, second)]
    if None in fields[0] or None in fields[1] or fields[0] == fields[1]:
        return
    places = [[(f.stride, f.centre) for f in both if f is not None] for both in fields]
    if places[0] == places[1]:
        return
    shared = 0
    while first.trail[shared : shared + 1] == second.trail[shared : shared + 1] != ():
        shared += 1
    lines = []
    for branch, place in zip((first, second), places, strict=True):
        way = branch.trail[shared:] if branch.trail[shared:] else branch.trail[-1:]
        way = tuple(step for step in way if step != name)
        strides, centres = (_pair(*numbers) for numbers in zip(*place, strict=True))
        lines.append(
            f"through {', '.join(way) or 'nothing'}, with stride {strides} and output 0 centred "
            f"at pixel {centres}"
        )
    if [stride for stride, _ in places[0]] != [stride for stride, _ in places[1]]:
        what = "their strides differ"
        advice = "Bring them to one stride before they meet"
    else:
        apart = [abs(b[1] - a[1]) for a, b in zip(*places, strict=True)]
        what = f"they lie {_pair(*apart)} pixels apart"
        advice = "Pad or crop one of them on one side more than on the other"
    raise FieldError(
        f"expected branches that are aligned where they meet, in {name}; got one {lines[0]}, and "
        f"one {lines[1]}: {what} (rows, columns where two numbers stand). {advice}, or pass "
        'misaligned="union" to have what both see.'
    )


def _field(line: Line | None) -> Field | None:
    return None if line is None else line.field()


def _pair(rows: Fraction, columns: Fraction) -> str:
    """One number, or two if they differ."""
    both = f"{float(rows):g}", f"{float(columns):g}"
    return both[0] if both[0] == both[1] else f"({both[0]}, {both[1]})"
