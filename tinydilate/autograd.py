"""Reverse-mode differentiation: tensors, operations, and the walk back through them.

Every operation on tensors makes one `Op` that remembers its inputs. The tensor that comes out
points to its op, so the ops form a graph that grows as the program runs. ``backward`` walks it
from the result to the leaves and applies the chain rule.

Why must the walk be sorted? Take ``b = a + a; c = b + b``. The gradient of ``b`` is the sum of
two parts, one from each use in ``c``. Walking on to ``a`` after the first part alone would carry
half the truth. An op may be visited only when everything that used its result has been. Ops
are numbered as they are made, and an op is always made after its inputs: visiting the highest
number first is therefore an order in which every user comes before what it used. No recursion, so
no limit on the depth of a network.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ContextDecorator
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tinydilate import buffers, device
from tinydilate.absent import missing
from tinydilate.device import (
    DEVICES,
    CudaArray,
    MetaArray,
    adopt,
    check_device,
    device_of,
    is_device,
    is_foreign,
    kept,
    move,
)
from tinydilate.errors import DeviceError, DtypeError, GraphError, ShapeError
from tinydilate.kernel import CudaElementwise, kernel

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NUMBERS = (int, float, np.integer)  # take the dtype of what they are combined with
_numbers = itertools.count()

# The pages of tinydilate/functional fill this with their public functions; Tensor's operators
# and methods look theirs up here, so that this module needs to know no page.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


def public(function: Callable[..., Any]) -> Any:
    """Register a page's function under its name for Tensor's operators and methods."""
    FUNCTIONS[function.__name__] = function
    return function


class _Mode(threading.local):
    """How deep in `no_grad` each thread is."""

    depth = 0


_mode = _Mode()


class no_grad(ContextDecorator):  # noqa: N801 - PyTorch's name
    """Within the block, or the decorated function, no graph is recorded."""

    def __enter__(self) -> None:
        _mode.depth += 1

    def __exit__(self, *_: object) -> None:
        _mode.depth -= 1


def is_grad_enabled() -> bool:
    """Whether operations are being recorded (in this thread)."""
    return _mode.depth == 0


_NUMPYS = {"axis": "dim", "keepdims": "keepdim"}  # its words, and PyTorch's


def _check_words(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Refuse NumPy's words for options of a function."""
    for word in options:
        ours = _NUMPYS.get(word)
        if ours and ours in signature(FUNCTIONS[name]).parameters:
            named = {_NUMPYS.get(key, key): value for key, value in options.items()}
            write = [*map(repr, arguments), *(f"{key}={value!r}" for key, value in named.items())]
            raise DtypeError(
                f"expected {ours}, as in PyTorch; got NumPy's {word}. Write "
                f"x.{name}({', '.join(write)})."
            )


def _method(name: str) -> Callable[..., Any]:
    def method(self: Tensor, *arguments: Any, **options: Any) -> Any:
        if options:
            _check_words(name, arguments, options)
        return FUNCTIONS[name](self, *arguments, **options)

    method.__name__ = name
    method.__doc__ = f"See `tinydilate.functional.{name}`."
    return method


def _reflected(name: str) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Any:
        return FUNCTIONS[name](other, self)

    method.__name__ = name
    return method


def _comparison(rule: Callable[..., Any]) -> Any:
    def method(self: Tensor, other: Any) -> Tensor:
        right = other.data if isinstance(other, Tensor) else other
        if isinstance(self.data, MetaArray):
            shape = np.broadcast_shapes(self.shape, getattr(right, "shape", ()))
            return Tensor(MetaArray(shape, np.bool_))
        if isinstance(self.data, CudaArray):  # on the processor: there is no gradient to keep up
            right = move(right, "cpu") if isinstance(right, CudaArray) else right
            return Tensor(move(np.asarray(rule(move(self.data, "cpu"), right)), "cuda"))
        return Tensor(np.asarray(rule(self.data, right)))

    method.__doc__ = "Compare element by element: a tensor of true and false, without a gradient."
    return method


# What NumPy calls when an array stands to the left of a tensor, and our function for it.
_OF_UFUNCS = {
    np.add: "add",
    np.subtract: "sub",
    np.multiply: "mul",
    np.true_divide: "div",
    np.power: "pow",
    np.matmul: "matmul",
    np.negative: "neg",
    np.exp: "exp",
    np.log: "log",
}
_TURNED = {
    np.equal: "__eq__",
    np.not_equal: "__ne__",
    np.less: "__gt__",
    np.less_equal: "__ge__",
    np.greater: "__lt__",
    np.greater_equal: "__le__",
}


def _for_numpy(given: list[Any], function: str) -> list[Any]:
    """A function's arguments, however nested, with arrays in the place of tensors."""
    waiting: list[Any] = [given]
    inside = Tensor, list, tuple, dict  # what may be, or hold, a tensor
    while waiting:
        holder = waiting.pop()
        for place, item in holder.items() if isinstance(holder, dict) else enumerate(holder):
            if isinstance(item, Tensor):
                holder[place] = _read_only(item, function)
            elif isinstance(item, dict):
                holder[place] = dict(item)
                waiting.append(holder[place])
            elif isinstance(item, list | tuple) and any(isinstance(part, inside) for part in item):
                holder[place] = list(item)
                waiting.append(holder[place])
    return given


def _read_only(tensor: Tensor, function: str) -> Any:
    """A tensor's numbers for NumPy, which is to change none: of one on a GPU it gets a copy."""
    if tensor.requires_grad:
        raise GraphError(
            f"expected a tensor outside the graph for np.{function}; got one that requires grad, "
            "which NumPy would not keep up. Take a function of tinydilate.functional, or "
            "x.detach()."
        )
    array = tensor.numpy().view()
    array.flags.writeable = False
    return array


class Tensor:
    """An array that remembers how it was computed.

    Make one with `tinydilate.tensor`.

    Attributes
    ----------
    data : ndarray, CudaArray or MetaArray
        The numbers.
    requires_grad : bool
        Whether gradients flow to it.
    grad : Tensor or None
        Sum of the gradients of every ``backward`` so far. Only leaves keep it: tensors that were
        made by `tensor`, not computed.
    op : Op or None
        The operation that computed it; None for a leaf.
    """

    __slots__ = ("__weakref__", "data", "grad", "op", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False, op: Op | None = None) -> None:
        if type(data) is not np.ndarray and type(data) is not CudaArray:  # the common cases
            data = _array(data)
        if requires_grad and data.dtype not in FLOATS:
            raise DtypeError(
                f"expected float32 or float64 for a tensor that requires grad; got {data.dtype}. "
                "Whole numbers have no derivative: convert with .astype(np.float32)."
            )
        self.data: Any = data
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.op = op

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.data.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return cast(int, self.data.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return cast("np.dtype[Any]", self.data.dtype)

    @property
    def device(self) -> str:
        """``"cpu"``, ``"cuda"`` or ``"meta"``."""
        return device_of(self.data)

    def numpy(self) -> Any:
        """The numbers as an ndarray, which shares memory with a tensor on the cpu."""
        if self.requires_grad:
            raise GraphError(
                "expected a tensor outside the graph; got one that requires grad, whose numbers "
                "could change unseen. Write .detach().numpy()."
            )
        return move(self.data, "cpu")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """What ``np.asarray(tensor)`` gives; see `numpy`."""
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """What ``array + tensor``, and ``np.sqrt`` of a tensor outside the graph, give."""
        if method == "__call__" and not options:
            if ufunc in _OF_UFUNCS:
                return FUNCTIONS[_OF_UFUNCS[ufunc]](*inputs)
            if ufunc in _TURNED and not isinstance(inputs[0], Tensor):  # array < tensor
                return getattr(inputs[1], _TURNED[ufunc])(inputs[0])
        if any(isinstance(target, Tensor) for target in options.get("out", ())):
            raise GraphError(
                f"expected np.{ufunc.__name__} to write to an array; got a tensor, which is "
                "computed and not assigned to. Write to an array, or to a leaf's .data."
            )
        given = _for_numpy([inputs, options], ufunc.__name__)
        return getattr(ufunc, method)(*given[0], **given[1])

    def __array_function__(self, function: Any, _: Any, inputs: Any, options: Any) -> Any:
        """What ``np.mean`` and its like give of a tensor outside the graph."""
        if function in (np.shape, np.ndim, np.size) and len(inputs) == 1 and not options:
            return getattr(self, function.__name__)
        given = _for_numpy([inputs, options], function.__name__)
        return function(*given[0], **given[1])

    if not TYPE_CHECKING:  # a type checker would take every name to be there

        def __getattr__(self, name: str) -> Any:
            raise missing("a tensor", self, name)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where the numbers are, in the DLPack protocol's numbers."""
        return cast(tuple[int, int], self._outside_the_graph().__dlpack_device__())

    def __dlpack__(self, **options: Any) -> Any:
        """The numbers for ``torch.from_dlpack(tensor)`` and its like, which share the memory."""
        return self._outside_the_graph().__dlpack__(**options)

    def _outside_the_graph(self) -> Any:
        if self.requires_grad:
            raise BufferError(
                "expected a tensor outside the graph; got one that requires grad, whose numbers "
                "could change unseen. Hand over .detach()."
            )
        if self.device == "meta":
            raise BufferError("expected a tensor with numbers; got one on meta.")
        return self.data

    @property
    def T(self) -> Tensor:
        """The tensor with its axes in the opposite order."""
        return cast(Tensor, self.permute(*reversed(range(self.ndim))))

    def item(self) -> float:
        """The one number of a tensor with one element, as a Python number."""
        if self.size != 1:
            raise ShapeError(
                f"expected a tensor with one element; got shape {self.shape}. "
                "Reduce it first, for example with .sum(), or take .numpy()."
            )
        return cast(float, move(self.data, "cpu").item())

    def detach(self) -> Tensor:
        """The same numbers as a leaf outside the graph."""
        return Tensor(self.data)

    def to(self, target: Any) -> Tensor:
        """Copy to a device (``"cpu"``, ``"cuda"``, ``"meta"``) or to a dtype; gradients flow back.

        Raises
        ------
        DeviceError, DtypeError
            If the target is neither, or the numbers cannot go there.
        """
        if is_device(target):
            if self.device == target:
                return self
            return Move(target)(self) if self.requires_grad else Tensor(move(self.data, target))
        try:
            dtype = np.dtype(target)
        except TypeError:
            raise DtypeError(
                f"expected a device ({', '.join(DEVICES)}) or a dtype; got {target!r}. "
                'Write .to("cpu") or .to(np.float32).'
            ) from None
        if not self.requires_grad or self.dtype == dtype:
            return self if self.dtype == dtype else Tensor(self.data.astype(dtype))
        return Cast(dtype)(self)

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add to the ``.grad`` of every leaf the derivative of this tensor by that leaf.

        Parameters
        ----------
        gradient : array of this tensor's shape, optional
            Derivative of the final quantity by this tensor; needed unless this is one number.
        retain_graph : bool
            Keep what the ops saved, so that a second backward can run through them.

        Raises
        ------
        GraphError
            If nothing requires grad, or the graph was used up by an earlier backward.
        ShapeError
            If ``gradient`` is missing or has another shape.
        """
        if not self.requires_grad:
            raise GraphError(
                "expected a tensor that requires grad; got one that does not depend on any. "
                "Make a leaf with requires_grad=True and compute outside no_grad()."
            )
        _backward(self, _seed(self, gradient), retain_graph)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        if self.device == "meta":
            return f"tensor(shape={self.shape}, dtype={self.dtype}, device='meta'{grad})"
        data = move(self.data, "cpu")
        body = np.array2string(data, separator=", ", precision=4, prefix="tensor(")
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        place = "" if self.device == "cpu" else f", device='{self.device}'"
        return f"tensor({body}{dtype}{place}{grad})"

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("expected a tensor with axes; got a single number. Take .item().")
        return self.shape[0]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise GraphError(
            "expected a tensor to be computed, not assigned to: the graph would not know. Edit the "
            "array before tensor(array), or a leaf's .data."
        )

    def _in_place(self, other: Any) -> Any:
        """``p -= step``: refused for a leaf, of which it would make another tensor, unseen."""
        if self.requires_grad and self.op is None:
            raise GraphError(
                "expected a leaf that requires grad to stay as it is; got an operator such as -=, "
                "which would make another tensor of it. To change its numbers take an optimiser, "
                "or on the cpu write p.data -= step."
            )
        return NotImplemented  # then Python computes p - step

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __imatmul__ = _in_place

    def __format__(self, how: str) -> str:
        return format(self.item(), how) if how else str(self)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    __add__, __radd__ = _method("add"), _reflected("add")
    __sub__, __rsub__ = _method("sub"), _reflected("sub")
    __mul__, __rmul__ = _method("mul"), _reflected("mul")
    __truediv__, __rtruediv__ = _method("div"), _reflected("div")
    __pow__, __rpow__ = _method("pow"), _reflected("pow")
    __matmul__, __rmatmul__ = _method("matmul"), _reflected("matmul")
    __neg__, __getitem__ = _method("neg"), _method("getitem")
    __eq__, __ne__ = _comparison(np.equal), _comparison(np.not_equal)
    __lt__, __le__ = _comparison(np.less), _comparison(np.less_equal)
    __gt__, __ge__ = _comparison(np.greater), _comparison(np.greater_equal)
    __hash__ = object.__hash__  # two tensors of equal numbers are two tensors
    exp, log, relu = _method("exp"), _method("log"), _method("relu")
    sum, mean, max = _method("sum"), _method("mean"), _method("max")
    argmax, softmax, log_softmax = _method("argmax"), _method("softmax"), _method("log_softmax")
    reshape, permute, transpose = _method("reshape"), _method("permute"), _method("transpose")
    flatten = _method("flatten")


def _array(data: Any) -> Any:
    """What a tensor holds: an array. NumPy answers arithmetic without axes with numbers."""
    if not hasattr(data, "dtype"):
        raise DtypeError(
            f"expected an array; got {type(data).__name__}. Write tinydilate.tensor(...): it "
            "reads numbers and lists."
        )
    return np.asarray(data) if isinstance(data, np.generic) else data


class Op(ABC):
    """One operation on tensors, and after the call one node of the graph.

    A subclass takes its options in ``__init__``, computes in `forward`, saves what the derivative
    needs under a name (``self.mask = ...``), and returns the inputs' gradients in `backward`.

    Attributes
    ----------
    inputs : tuple of Tensor
        What it was called with.
    needs : tuple of bool
        For each input, whether its gradient is wanted; `backward` may skip the others.
    """

    inputs: tuple[Tensor, ...] = ()
    needs: tuple[bool, ...] = ()
    number: int = -1
    used_up: bool = False

    @abstractmethod
    def forward(self, *arrays: Any) -> Any:
        """Arrays in, array out."""

    @abstractmethod
    def backward(self, grad: Any) -> Any:
        """Gradient of the output in, gradient of each input out (None where not needed)."""

    def __call__(self, *inputs: Any) -> Tensor:
        """Run `forward`, and record this op if a gradient will be wanted.

        Raises
        ------
        GraphError
            If it is recorded already: one op is one node, with one set of saved arrays.
        """
        if self.number >= 0 or self.used_up:
            raise GraphError(
                f"expected a {type(self).__name__} op that is not in a graph yet; got one that was "
                "called before, and a second call would overwrite what it saved. Make a new one "
                f"for each call: {type(self).__name__}(...)(x)."
            )
        return self._run(as_tensors(*inputs))

    def _run(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Call a new op with inputs that `as_tensors` has looked at already."""
        self.needs = tuple([tensor.requires_grad for tensor in tensors])
        result = self.forward(*[tensor.data for tensor in tensors])
        if True not in self.needs or not is_grad_enabled():
            return Tensor(result)
        self.inputs, self.number = tensors, next(_numbers)
        return Tensor(result, requires_grad=True, op=self)

    def input_gradients(self, grad: Any) -> tuple[Any, ...]:
        """`backward`, with its result as a tuple; on the meta device, shapes alone."""
        if isinstance(grad, MetaArray):
            return tuple(MetaArray(tensor.shape, tensor.dtype) for tensor in self.inputs)
        gradients = self.backward(grad)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if len(gradients) != len(self.inputs):
            raise GraphError(
                f"{type(self).__name__}.backward expected to return one gradient for each input, "
                f"{len(self.inputs)} in all; it returned {len(gradients)}. Return None for an "
                "input that needs none."
            )
        for tensor, needed, gradient in zip(self.inputs, self.needs, gradients, strict=True):
            if needed and getattr(gradient, "shape", None) != tensor.data.shape:
                raise GraphError(
                    f"{type(self).__name__}.backward expected to return a gradient of its input's "
                    f"shape {tensor.shape}; it returned {_kind(gradient)}. Sum it over the axes "
                    "that were broadcast, or reshape it."
                )
        return gradients

    def use_up(self) -> None:
        """Let go of the inputs and of all that forward saved."""
        self.__dict__.clear()
        self.used_up = True


class Move(Op):
    """Copy to another device."""

    def __init__(self, target: str) -> None:
        self.target = target

    def forward(self, x: Any) -> Any:
        self.source = device_of(x)
        return move(x, self.target)

    def backward(self, grad: Any) -> Any:
        return move(grad, self.source)


class Cast(Op):
    """Convert to another floating-point type."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.target = dtype

    def forward(self, x: Any) -> Any:
        self.source = x.dtype
        return x.astype(self.target)

    def backward(self, grad: Any) -> Any:
        return grad.astype(self.source)


def tensor(data: Any, requires_grad: bool = False, device: str | None = None) -> Tensor:
    """Make a leaf tensor.

    Parameters
    ----------
    data : array_like
        An array keeps its dtype; Python numbers become float32. An array that is C-contiguous is
        shared, not copied: editing it between a computation and its backward gives wrong
        gradients. Pass ``array.copy()`` if it will change. An array of another library on the
        GPU (PyTorch, CuPy) is shared as well.
    requires_grad : bool
        Whether ``backward`` should fill its ``.grad``; needs float32 or float64.
    device : {"cpu", "meta", "cuda"}, optional
        By default where the data are.

    Raises
    ------
    DtypeError
        If the data are not numbers.
    DeviceError
        If the device is unknown or not available.
    """
    if device is not None:
        check_device(device)
    if isinstance(data, Tensor):
        data = data.data
    if is_foreign(data):
        data = adopt(data)
    if not isinstance(data, MetaArray | CudaArray):
        try:
            array = np.asarray(data)
        except ValueError:
            raise ShapeError(
                "expected rows of one length; got a list whose rows differ. Fill the short ones up."
            ) from None
        if array.dtype.kind not in "biuf":
            raise DtypeError(
                f"expected real numbers; got an array of dtype {array.dtype}. Convert it with "
                ".astype(np.float32), if it holds numbers."
            )
        if not isinstance(data, np.ndarray | np.generic):
            array = array.astype(np.float32)
        data = np.require(array.astype(array.dtype.newbyteorder("="), copy=False), None, ["C", "A"])
    return Tensor(data if device is None else move(data, device), requires_grad)


def as_tensors(*values: Any) -> tuple[Tensor, ...]:
    """Read an op's inputs: tensors as they are, arrays as leaves, Python numbers in their dtype.

    A Python number takes the dtype and the device of the first tensor or array beside it.

    Raises
    ------
    DeviceError, DtypeError
        If tensors of different devices or different number types are mixed, or the numbers are
        whole.
    """
    if _alike(values):
        return values
    model = next((value for value in values if not isinstance(value, _NUMBERS)), None)
    first = model if isinstance(model, Tensor) else tensor(0.0 if model is None else model)
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, _NUMBERS):
            tensors.append(Tensor(_number(value, first)))
        else:
            tensors.append(tensor(value))
    for other in tensors:
        if other.device != tensors[0].device:
            raise _on_two_devices(tensors[0], other)
        if other.dtype not in FLOATS:
            raise DtypeError(
                f"expected numbers of dtype float32 or float64; got {other.dtype}. Convert them: "
                "array.astype(np.float32), tensor.to(np.float32)."
            )
        if other.dtype != tensors[0].dtype:
            raise DtypeError(
                f"expected tensors of one dtype, float32 or float64; got {tensors[0].dtype} and "
                f"{other.dtype}. Convert one of them, for example with .to(np.float32)."
            )
    return tuple(tensors)


def _on_two_devices(*tensors: Tensor) -> DeviceError:
    """With the way that is always open: from the processor, and to meta."""
    first, last = sorted((tensor.device for tensor in tensors), key=DEVICES.index)
    got = " and ".join(f"one of shape {tensor.shape} on {tensor.device}" for tensor in tensors)
    return DeviceError(
        f"expected tensors on one device; got {got}. Move the one that is on {first}, and the "
        f'module, if it is a module\'s: .to("{last}").'
    )


def _number(value: Any, first: Tensor) -> Any:
    """A Python number as an array like that of the tensor beside it."""
    number = np.asarray(value, dtype=first.dtype)
    if first.device == "meta":
        return MetaArray((), first.dtype, float(number))
    # The 2 of ``x * 2`` is the same in each step, so on the GPU it need not be sent there again.
    return kept(number) if first.device == "cuda" else number


def _alike(values: tuple[Any, ...]) -> bool:
    """Whether all are tensors of one device and one floating-point dtype, the common case."""
    kind, dtype = None, None
    for value in values:
        if type(value) is not Tensor:
            return False
        data = value.data
        if dtype is None:
            kind, dtype = type(data), data.dtype
            if dtype not in FLOATS:
                return False
        elif (data.dtype is not dtype and data.dtype != dtype) or type(data) is not kind:
            return False
    return True


@kernel
def accumulate(a: Any, b: Any) -> Any:
    """Sum of two gradients of the same tensor."""
    return np.add(a, b)


@accumulate.cpu
def accumulate_cpu(a: Any, b: Any) -> Any:  # noqa: D103 - what its reference means
    return np.add(a, b, out=buffers.empty_like(a))


accumulate.cuda(CudaElementwise(np.add))
accumulate.meta(lambda a, b: a)


def _kind(gradient: Any) -> str:
    """What a gradient is, for an error's text."""
    shape = getattr(gradient, "shape", None)
    return type(gradient).__name__ if shape is None else f"one of shape {shape}"


def _seed(root: Tensor, gradient: Any) -> Any:
    if gradient is None:
        if root.size != 1:
            raise ShapeError(
                f"backward from a tensor of shape {root.shape} needs a gradient of that shape: "
                "the derivative of many numbers at once is ambiguous. Reduce it to one number, "
                "for example with .sum(), or pass backward(gradient)."
            )
        gradient = np.ones(root.shape, root.dtype)
        if root.device == "cuda":
            gradient = kept(gradient)  # nobody writes to a gradient
    given = gradient.data if isinstance(gradient, Tensor) else gradient
    if not isinstance(given, CudaArray | MetaArray):
        given = np.asarray(given, given.dtype if isinstance(gradient, Tensor) else root.dtype)
    if given.shape != root.shape:
        raise ShapeError(
            f"expected a gradient of shape {root.shape}, as the tensor has; got {given.shape}."
        )
    if given.dtype != root.dtype:
        raise DtypeError(
            f"expected a gradient of {root.dtype}; got {given.dtype}. Convert it with .to()."
        )
    return move(given, root.device)


def ops_behind(results: Iterable[Tensor]) -> list[tuple[Op, Tensor]]:
    """Every op that tensors were computed by, each after those that it reads, with its result."""
    found: dict[int, tuple[Op, Tensor]] = {}
    waiting = list(results)
    while waiting:
        tensor = waiting.pop()
        if tensor.op is not None and tensor.op.number not in found:
            found[tensor.op.number] = tensor.op, tensor
            waiting.extend(tensor.op.inputs)
    return [found[number] for number in sorted(found)]


def _is_twice(array: Any, arrays: tuple[Any, ...]) -> bool:
    """Whether an array is more than one of these."""
    return len([other for other in arrays if other is array]) > 1


def _give_to_a_leaf(leaf: Tensor, gradient: Any, beside: tuple[Any, ...]) -> None:
    """Start or continue the sum in a leaf's ``.grad``, which shares memory with no other array."""
    if device.being_recorded:
        device.being_recorded.gradient_of(leaf)
    if leaf.grad is None:
        shared = buffers.is_view(gradient) or _is_twice(gradient, beside)
        leaf.grad = Tensor(gradient.copy() if shared else gradient)
    else:
        leaf.grad = Tensor(accumulate(leaf.grad.data, gradient))


def _backward(root: Tensor, seed: Any, retain_graph: bool) -> None:
    """Visit ops from the newest to the oldest; by then each has its whole gradient."""
    gradients: dict[int, Any] = {}  # number of an op -> gradient of its output, so far
    waiting: list[tuple[int, Op]] = []  # a heap of ops, the highest number on top

    def give(tensor: Tensor, gradient: Any, beside: tuple[Any, ...]) -> None:
        op = tensor.op
        if op is None:
            _give_to_a_leaf(tensor, gradient, beside)
        elif op.used_up:
            raise GraphError(
                "expected a graph that can still be walked; got one whose saved arrays were let "
                "go by an earlier backward. Compute the result again, or write "
                "backward(retain_graph=True) the first time."
            )
        elif op.number in gradients:
            gradients[op.number] = accumulate(gradients[op.number], gradient)
        else:
            gradients[op.number] = gradient
            heapq.heappush(waiting, (-op.number, op))

    # A function of its own: with its variables the gradients end that nobody needs any more, before
    # the next op makes new ones.
    def visit(op: Op) -> None:
        gradient = gradients.pop(op.number)
        results = op.input_gradients(gradient)
        inputs, needs = op.inputs, op.needs
        if not retain_graph:
            op.use_up()
        for tensor, needed, result in zip(inputs, needs, results, strict=True):
            if needed and tensor.requires_grad:  # it may have been frozen or thawed since
                give(tensor, result, (gradient, *results))

    give(root, seed, (seed, seed))  # as shared, for the caller keeps it, too
    while waiting:
        visit(heapq.heappop(waiting)[1])
