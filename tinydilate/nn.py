"""Modules: layers with parameters, and networks made of layers, with the names of ``torch.nn``.

A module is an ordinary object. Its parameters, buffers and sub-modules are whatever attributes of
those types it has, in the order in which they were set, and their names are the attributes' names
joined by dots:

    class Block(Module):
        def __init__(self):
            self.conv = Conv2d(8, 8, 3, padding=1)   # named "conv"; its weight is "conv.weight"

        def forward(self, x):
            return self.conv(x).relu()

Nothing is registered behind the scenes, so there is no base ``__init__`` to call.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

import numpy as np

from tinydilate import absent, init
from tinydilate import functional as F
from tinydilate.autograd import FLOATS, Tensor
from tinydilate.device import (
    DEVICES,
    CudaArray,
    MetaArray,
    check_device,
    is_device,
    move,
    write,
)
from tinydilate.errors import (
    ConfigError,
    DataError,
    DeviceError,
    DtypeError,
    ShapeError,
    listed,
)
from tinydilate.functional.padding import reflect_border
from tinydilate.window import Window, pair

if not TYPE_CHECKING:
    __getattr__ = absent.asked_of("tinydilate.nn")

Kind = TypeVar("Kind")
Size = tuple[int, ...]

# ---- parameters and buffers ------------------------------------------------------------------


class Parameter(Tensor):
    """A leaf tensor that a module learns: an attribute of this type is one of its parameters.

    Parameters
    ----------
    data : array, MetaArray or Tensor
        float32 or float64. A C-contiguous array that can be written to is shared, another is
        copied.
    requires_grad : bool
        False for a fixed parameter, one that is saved but not learnt.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(_own(data), requires_grad)


class Buffer(Tensor):
    """A tensor that a module keeps and saves but does not learn, such as a mean colour."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(_own(data))


def _own(data: Any) -> Any:
    """Numbers that may be changed in place, in the layout that kernels like."""
    array = data.data if isinstance(data, Tensor) else data
    if isinstance(array, MetaArray | CudaArray):
        return array
    return np.require(array, None, ["C", "A", "W"])


def _parameter(shape: Size, device: str, dtype: Any) -> Parameter:
    """A parameter without values yet; on the meta device it takes no memory."""
    check_device(device)
    if np.dtype(dtype) not in FLOATS:
        raise DtypeError(f"expected dtype float32 or float64 for parameters; got {dtype!r}.")
    if device == "meta":
        return Parameter(MetaArray(shape, dtype))
    return Parameter(move(np.empty(shape, dtype), device))


# ---- watching calls --------------------------------------------------------------------------


class Call(NamedTuple):
    """What a watcher is told about one call of a module."""

    module: Module
    inputs: tuple[Any, ...]
    output: Any


_watchers: list[Callable[[Call], None]] = []


@contextmanager
def watching_modules(watcher: Callable[[Call], None]) -> Iterator[None]:
    """Within the block, call ``watcher`` with a `Call` after every module's forward."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


# ---- module ----------------------------------------------------------------------------------


class Mismatch(NamedTuple):
    """Names that a state and a module do not share."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(ABC):
    """Something with parameters that maps tensors to a tensor; subclasses write `forward`.

    Attributes
    ----------
    training : bool
        Whether layers that act differently in training (`Dropout`) do so; see `train`, `eval`.
    """

    training = True

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs -> output."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run `forward`."""
        output = self.forward(*inputs, **options)
        if output is None:
            raise ConfigError(
                f"expected {type(self).__name__}.forward to return a tensor; got None. End it with "
                "return."
            )
        for watcher in tuple(_watchers):
            watcher(Call(self, inputs, output))
        return output

    def __setattr__(self, name: str, value: Any) -> None:
        # A list or a dict hides what it holds from parameters(), and it would silently never learn.
        items = value.values() if isinstance(value, dict) else value
        if isinstance(value, list | tuple | set | dict) and any(
            isinstance(item, Module | Parameter) for item in items
        ):
            raise ConfigError(
                "expected modules and parameters as attributes of their own; got a "
                f"{type(value).__name__} of them for {name!r}, whose parameters would not be "
                "found. Use nn.Sequential, or one attribute for each."
            )
        if type(value) is Tensor and value.requires_grad and value.op is None:
            raise ConfigError(
                f"expected a Parameter for {name!r}, which the module would learn; got a tensor "
                "that requires grad, which parameters() would not find. Write "
                f"self.{name} = nn.Parameter(array)."
            )
        object.__setattr__(self, name, value)

    if not TYPE_CHECKING:  # a type checker would take every name to be there

        def __getattr__(self, name: str) -> Any:
            raise absent.missing("a module", self, name)

    # What the module is made of.

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) for each direct sub-module."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Direct sub-modules."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module): this one, then all below it from the top down, each once."""
        seen = set()
        waiting: list[tuple[str, Module]] = [(prefix, self)]
        while waiting:
            name, module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            children = [(_join(name, key), child) for key, child in module.named_children()]
            waiting.extend(reversed(children))

    def modules(self) -> Iterator[Module]:
        """The module itself and all below it, each once."""
        return (module for _, module in self.named_modules())

    def _named(self, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
        """(dotted name, attribute) of one type, each object once under its first name."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield _join(prefix, name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), each once; fixed ones (requires_grad=False) too."""
        return self._named(Parameter)

    def parameters(self) -> Iterator[Parameter]:
        """Parameters, each once: what an optimiser takes."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """(dotted name, buffer), each once."""
        return self._named(Buffer)

    def buffers(self) -> Iterator[Buffer]:
        """Buffers, each once."""
        return (buffer for _, buffer in self.named_buffers())

    def _named_tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.named_parameters(), *self.named_buffers()]

    # Saving and loading.

    def state_dict(self) -> dict[str, Any]:
        """Every parameter and buffer as an array under its dotted name.

        The arrays are copies, a snapshot: training on does not change them. A parameter that is
        shared by two layers stands once, under its first name. On the meta device the values are
        `MetaArray`, shapes only.

        Examples
        --------
        Saving to a file, and loading into a network built with the same arguments::

            save_checkpoint("net.safetensors", net.state_dict())
            arrays, note = load_checkpoint("net.safetensors")
            net.load_state_dict(arrays)

        Both functions are in `tinydilate.io.checkpoint`.
        """
        state = {}
        for name, tensor in self._named_tensors():
            meta = tensor.device == "meta"
            state[name] = tensor.data if meta else move(tensor.data, "cpu").copy()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Mismatch:
        """Copy arrays into the parameters and buffers of the same names.

        All is checked before anything is copied: after an error the module is as it was. Numbers
        are converted to the module's dtype.

        Parameters
        ----------
        state_dict : mapping from names to arrays or tensors
        strict : bool
            Whether the names must be the same ones. Otherwise those that both have are loaded.

        Returns
        -------
        Mismatch
            Names that were missing from the state, and names that the module does not have.

        Raises
        ------
        DataError
            If names are missing or unexpected (strict), or shapes differ (always).
        DeviceError
            If the module is on the meta device.
        """
        if not isinstance(state_dict, Mapping):
            raise DataError(
                "expected a mapping from names to arrays, as state_dict() returns; got "
                f"{type(state_dict).__name__}. "
                + (
                    "load_checkpoint returns (arrays, note): pass the first."
                    if isinstance(state_dict, tuple)
                    else "Read a checkpoint file first."
                )
            )
        own = dict(self._named_tensors())
        if any(tensor.device == "meta" for tensor in own.values()):
            raise DeviceError(
                "expected a module with numbers to load into; got one on the meta device, which "
                'has shapes only. Build it again with device="cpu", or give it memory first with '
                'to_empty("cpu").'
            )
        given = {name: _array(name, value) for name, value in state_dict.items()}
        missing = [name for name in own if name not in given]
        unexpected = [name for name in given if name not in own]
        reshaped = [
            f"{name} {given[name].shape} for {tensor.shape}"
            for name, tensor in own.items()
            if name in given and given[name].shape != tensor.shape
        ]
        _refuse_mismatch(missing if strict else [], unexpected if strict else [], reshaped)
        for name, tensor in own.items():
            if name in given:
                write(given[name], tensor.data)
        return Mismatch(missing, unexpected)

    # Changing all of it.

    def train(self, mode: bool = True) -> Self:
        """Have every module act as in training, or with ``False`` as in evaluation."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Have every module act as in evaluation: ``train(False)``."""
        return self.train(False)

    def to(self, target: Any) -> Self:
        """Move every parameter and buffer to a device, or convert the floating-point ones.

        The parameters stay the same objects, so an optimiser that holds them needs no telling.

        Raises
        ------
        DeviceError, DtypeError
            If the device or the dtype cannot be used; nothing is changed then.
        """
        convert = _converter(target)
        tensors = [tensor for _, tensor in self._named_tensors()]
        moved = [convert(tensor.data) for tensor in tensors]
        grads = [None if tensor.grad is None else convert(tensor.grad.data) for tensor in tensors]
        for tensor, data, grad in zip(tensors, moved, grads, strict=True):
            tensor.data = data
            tensor.grad = None if grad is None else Tensor(grad)
        return self

    def to_empty(self, device: str) -> Self:
        """Give every parameter and buffer fresh memory on a device, numbers to follow.

        For a network that was built on the meta device and gets its numbers from a file. Until
        then they are zeros, which take no memory on the processor: the system hands it out when it
        is first written to.

        Raises
        ------
        DeviceError
            If the device cannot be used.
        """
        check_device(device)
        for _, tensor in self._named_tensors():
            meta = device == "meta"
            shape, dtype = tensor.shape, tensor.dtype
            tensor.data = MetaArray(shape, dtype) if meta else move(np.zeros(shape, dtype), device)
            tensor.grad = None
        return self

    def zero_grad(self) -> None:
        """Forget every parameter's gradient."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Have every parameter learn, or with ``False`` freeze the module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    # What it tells of itself.

    def macs(self, before: Size, after: Size) -> int:
        """Multiply-accumulate operations of one call; 0 for layers without products."""
        return 0

    def extra_repr(self) -> str:
        """What the representation says between the brackets."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}" for name, child in self.named_children()]
        lines = "\n".join(children).replace("\n", "\n  ")
        inside = f"\n  {lines}\n" if children else self.extra_repr()
        return f"{type(self).__name__}({inside})"


def as_meta(module: Kind) -> Kind:
    """Copy a module without its numbers: the same structure on the meta device, for dry runs."""
    shadows: dict[int, Any] = {}
    for _, tensor in cast(Module, module)._named_tensors():
        shape = MetaArray(tensor.shape, tensor.dtype)
        learns = isinstance(tensor, Parameter)
        shadows[id(tensor)] = Parameter(shape, tensor.requires_grad) if learns else Buffer(shape)
    return copy.deepcopy(module, shadows)  # what is in the memo counts as copied already


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _array(name: str, value: Any) -> Any:
    array = value.data if isinstance(value, Tensor) else value
    if isinstance(array, CudaArray):
        array = move(array, "cpu")
    array = array if isinstance(array, MetaArray) else np.asarray(array)
    if isinstance(array, MetaArray) or array.dtype.kind not in "biuf":
        raise DataError(f"expected an array of numbers for {name}; got {value!r:.80}.")
    return array


def _refuse_mismatch(missing: list[str], unexpected: list[str], reshaped: list[str]) -> None:
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    parts = [f"{kind} {listed(names)}" for kind, names in kinds.items() if names]
    if parts:
        raise DataError(
            "expected a state of the same names and shapes as the module's; got one with these "
            f"differences: {'; '.join(parts)}. Nothing was loaded. Build the module with the "
            "arguments that it was saved with"
            + (", or load what fits with strict=False." if missing or unexpected else ".")
        )


def _converter(target: Any) -> Callable[[Any], Any]:
    """What `Module.to` does to each array."""
    if is_device(target):
        return lambda array: move(array, target)
    try:
        dtype = np.dtype(target)
    except TypeError:
        dtype = np.dtype(object)
    if dtype not in FLOATS:
        raise DtypeError(
            f"expected a device ({', '.join(DEVICES)}), float32 or float64; got {target!r}. "
            'Write .to("cuda") or .to(np.float64).'
        )

    def convert(array: Any) -> Any:
        return array.astype(dtype) if array.dtype.kind == "f" else array

    return convert


# ---- containers ------------------------------------------------------------------------------


class Sequential(Module):
    """Modules one after the other.

    Parameters
    ----------
    *modules : Module, (name, Module), or one mapping from names to modules
        Without names they are called "0", "1" and so on.

    Raises
    ------
    ConfigError
        If something is no module, or a name cannot be one.

    Examples
    --------
    >>> net = Sequential(("conv", Conv2d(1, 4, 3)), ("act", ReLU()))
    >>> list(net.state_dict())
    ['conv.weight', 'conv.bias']
    """

    def __init__(self, *modules: Any) -> None:
        items: Sequence[Any] = modules
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            items = list(modules[0].items())
        for number, item in enumerate(items):
            named = isinstance(item, tuple) and len(item) == 2
            self._append(*(item if named else (str(number), item)))

    def _append(self, name: Any, module: Any) -> None:
        if not isinstance(module, Module):
            raise ConfigError(
                f"Sequential expected modules or (name, module) pairs; got {module!r:.80}."
            )
        if not isinstance(name, str) or not name or "." in name or hasattr(self, name):
            raise ConfigError(
                "Sequential expected names without a dot, each of its own and none of them a "
                f"method's; got {name!r}."
            )
        setattr(self, name, module)

    def forward(self, input: Any) -> Any:
        for module in self:
            input = module(input)
        return input

    def __len__(self) -> int:
        return len(list(self.named_children()))

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, key: int | slice | str) -> Any:
        """A module by its number or its name, or a Sequential of a slice (the modules shared)."""
        items = list(self.named_children())
        if isinstance(key, slice):
            return Sequential(*items[key])
        return dict(items)[key] if isinstance(key, str) else items[key][1]


# ---- layers with weights ---------------------------------------------------------------------


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ShapeError(f"{name} should be a whole number of at least 1, got {value!r}.")
    return int(value)


def _start(module: Any, rng: init.Seed) -> None:
    """PyTorch's start: weight and bias evenly from [-1, 1) / sqrt(fan_in)."""
    if module.weight.device == "meta":
        return
    random = init.generator(rng)
    init.he_uniform_(module.weight, math.sqrt(5), random)
    if module.bias is not None:
        bound = 1 / math.sqrt(init.fans(module.weight.shape)[0])
        init.uniform_(module.bias, bound, random)


class Conv2d(Module):
    """Dilated convolution; see `tinydilate.functional.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and F.
    kernel_size, stride, padding, dilation : int or (rows, columns)
        ``padding`` may also be "same" or "valid". ``dilation`` is the paper's factor l.
    groups : int
        Number of blocks of channels that do not see each other.
    bias : bool
        Whether a number is added to each map.
    device : {"cpu", "meta", "cuda"}
        With "meta" the layer has shapes only and takes no memory.
    dtype : float32 or float64
    rng : Generator, int or None
        Where the random start comes from: weight and bias evenly from [-1, 1) / sqrt(C/groups *
        KH * KW), as in PyTorch. None is the generator that `tinydilate.manual_seed` sets.
    relu : bool
        Whether to truncate the result at zero in the same pass over memory.

    Attributes
    ----------
    weight : Parameter, (F, C/groups, KH, KW)
    bias : Parameter, (F,), or None
    window : Window

    Raises
    ------
    ShapeError
        If a number is too small, or groups does not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: str = "cpu",
        dtype: Any = np.float32,
        rng: init.Seed = None,
        relu: bool = False,
    ) -> None:
        self.in_channels = _whole(in_channels, "in_channels")
        self.out_channels = _whole(out_channels, "out_channels")
        self.window = Window.of(kernel_size, stride, padding, dilation)
        self.padding = padding
        self.groups = _check_groups(groups, in_channels, out_channels)
        self.relu = relu
        shape = (out_channels, in_channels // groups, *self.window.kernel)
        self.weight = _parameter(shape, device, dtype)
        self.bias = _parameter((out_channels,), device, dtype) if bias else None
        _start(self, rng)

    def forward(self, input: Any) -> Tensor:
        _check_channels(input, self.in_channels)
        window = self.window
        return F.conv2d(  # type: ignore[no-any-return]
            input,
            self.weight,
            self.bias,
            window.stride,
            self.padding,
            window.dilation,
            self.groups,
            relu=self.relu,
        )

    def macs(self, before: Size, after: Size) -> int:
        """Each output number is a sum of C/groups * KH * KW products."""
        return math.prod(after) * math.prod(self.weight.shape[1:])

    def extra_repr(self) -> str:
        window = self.window
        padding = self.padding if isinstance(self.padding, str) else pair(self.padding, "", 0)
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel}, "
            f"stride={window.stride}"
            + (f", padding={padding}" if padding not in ((0, 0), "valid") else "")
            + (f", dilation={window.dilation}" if window.dilation != (1, 1) else "")
            + (f", groups={self.groups}" if self.groups != 1 else "")
            + (", bias=False" if self.bias is None else "")
            + (", relu=True" if self.relu else "")
        )


class ConvTranspose2d(Module):
    """Transposed convolution ("deconvolution"); see `tinydilate.functional.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and F.
    kernel_size, stride, padding : int or (rows, columns)
        Of the convolution of which this is the adjoint.
    output_padding : int or (rows, columns)
        Rows and columns more, where a stride leaves several output sizes possible.
    groups : int
    bias : bool
    dilation : int or (rows, columns)
    device, dtype, rng
        See `Conv2d`.

    Attributes
    ----------
    weight : Parameter, (C, F/groups, KH, KW)
    bias : Parameter, (F,), or None
    window : Window
        The window of that convolution, which reads our output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        *,
        device: str = "cpu",
        dtype: Any = np.float32,
        rng: init.Seed = None,
    ) -> None:
        self.in_channels = _whole(in_channels, "in_channels")
        self.out_channels = _whole(out_channels, "out_channels")
        self.window = Window.of(kernel_size, stride, pair(padding, "padding", 0), dilation)
        self.output_padding = pair(output_padding, "output_padding", 0)
        self.groups = _check_groups(groups, in_channels, out_channels)
        shape = (in_channels, out_channels // groups, *self.window.kernel)
        self.weight = _parameter(shape, device, dtype)
        self.bias = _parameter((out_channels,), device, dtype) if bias else None
        _start(self, rng)

    def forward(self, input: Any) -> Tensor:
        _check_channels(input, self.in_channels)
        window = self.window
        return F.conv_transpose2d(  # type: ignore[no-any-return]
            input,
            self.weight,
            self.bias,
            window.stride,
            window.before,
            self.output_padding,
            self.groups,
            window.dilation,
        )

    def macs(self, before: Size, after: Size) -> int:
        """Each input number is multiplied by F/groups * KH * KW weights."""
        return math.prod(before) * math.prod(self.weight.shape[1:])

    def extra_repr(self) -> str:
        window = self.window
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel}, "
            f"stride={window.stride}"
            + (f", padding={window.before}" if window.before != (0, 0) else "")
            + (f", dilation={window.dilation}" if window.dilation != (1, 1) else "")
            + (f", output_padding={self.output_padding}" if any(self.output_padding) else "")
            + (f", groups={self.groups}" if self.groups != 1 else "")
            + (", bias=False" if self.bias is None else "")
        )


def _check_groups(groups: int, in_channels: int, out_channels: int) -> int:
    if in_channels % _whole(groups, "groups") or out_channels % groups:
        raise ShapeError(
            f"expected groups to divide in_channels and out_channels; got {groups} groups for "
            f"{in_channels} and {out_channels}."
        )
    return int(groups)


def _check_channels(input: Any, channels: int) -> None:
    """Refuse an image of other channels: a network's user thinks of those, not of a weight."""
    shape: Size = getattr(input, "shape", ())
    if len(shape) not in (3, 4) or shape[-3] == channels:
        return
    batch, axes = ("N, ", "(0, 3, 1, 2)") if len(shape) == 4 else ("", "(2, 0, 1)")
    if shape[-1] == channels:
        move_axes = "permute" if isinstance(input, Tensor) else "transpose"
        advice = f"Its channels seem to stand last: put them first with x.{move_axes}{axes}."
    else:
        advice = "Change in_channels, or give it an input with that many."
    raise ShapeError(
        f"expected an input with in_channels={channels} channels, ({batch}{channels}, H, W); "
        f"got shape {tuple(shape)}. {advice}"
    )


class Linear(Module):
    """Affine map of the last axis, ``x @ weight.T + bias``; see `tinydilate.functional.linear`.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    device, dtype, rng
        See `Conv2d`.

    Attributes
    ----------
    weight : Parameter, (out_features, in_features)
    bias : Parameter, (out_features,), or None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: str = "cpu",
        dtype: Any = np.float32,
        rng: init.Seed = None,
    ) -> None:
        self.in_features = _whole(in_features, "in_features")
        self.out_features = _whole(out_features, "out_features")
        self.weight = _parameter((out_features, in_features), device, dtype)
        self.bias = _parameter((out_features,), device, dtype) if bias else None
        _start(self, rng)

    def forward(self, input: Any) -> Tensor:
        return F.linear(input, self.weight, self.bias)  # type: ignore[no-any-return]

    def macs(self, before: Size, after: Size) -> int:
        return math.prod(after) * self.in_features

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"


# ---- layers without weights ------------------------------------------------------------------


class Identity(Module):
    """The input as it is: a placeholder."""

    def forward(self, input: Any) -> Any:
        return input


class ReLU(Module):
    """``max(input, 0)``; see `tinydilate.functional.relu`."""

    def forward(self, input: Any) -> Tensor:
        return F.relu(input)  # type: ignore[no-any-return]


class Dropout(Module):
    """In training, set each number to 0 with probability ``p`` and the others to x / (1 - p).

    See `tinydilate.functional.dropout`. In evaluation, the input as it is.
    """

    def __init__(self, p: float = 0.5) -> None:
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ConfigError(f"expected a probability p from 0 to 1; got {p!r}.")
        self.p = p

    def forward(self, input: Any) -> Tensor:
        return F.dropout(input, self.p, self.training)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Softmax(Module):
    """Positive numbers that add up to 1 along ``dim``; see `tinydilate.functional.softmax`."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, input: Any) -> Tensor:
        return F.softmax(input, self.dim)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Flatten(Module):
    """Join the axes from ``start_dim`` to ``end_dim`` into one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Any) -> Tensor:
        return F.flatten(input, self.start_dim, self.end_dim)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class MaxPool2d(Module):
    """Largest number in each window; see `tinydilate.functional.max_pool2d`.

    Parameters
    ----------
    kernel_size : int or (rows, columns)
    stride : int or (rows, columns), optional
        The kernel's size if not given.
    padding, dilation : int or (rows, columns)
    return_indices : bool
        Whether to return the positions of the largest numbers as well.
    ceil_mode : bool
        Whether a last window that hangs over the edge counts, as in Caffe.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.padding, self.dilation = kernel_size, padding, dilation
        self.stride = kernel_size if stride is None else stride
        self.return_indices, self.ceil_mode = return_indices, ceil_mode
        self.window = Window.of(kernel_size, self.stride, padding, dilation, ceil_mode)

    def forward(self, input: Any) -> Any:
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(Module):
    """Mean of each window; see `tinydilate.functional.avg_pool2d`.

    Parameters
    ----------
    kernel_size : int or (rows, columns)
    stride : int or (rows, columns), optional
        The kernel's size if not given.
    padding : int or (rows, columns)
    ceil_mode : bool
        Whether a last window that hangs over the edge counts.
    count_include_pad : bool
        Whether the padding's zeros count in the mean.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad
        self.window = Window.of(kernel_size, self.stride, padding, 1, ceil_mode)

    def forward(self, input: Any) -> Tensor:
        return F.avg_pool2d(  # type: ignore[no-any-return]
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _Pad2d(Module):
    """A border around each map: a window of one tap, whose output 0 lies before the first pixel."""

    mode: str

    def __init__(self, padding: int | Sequence[int]) -> None:
        sides = tuple(padding) if isinstance(padding, Sequence) else (padding,) * 4
        if len(sides) != 4 or any(isinstance(s, bool) or not isinstance(s, int) for s in sides):
            raise ShapeError(
                "expected a padding in whole pixels, one for all sides or (left, right, top, "
                f"bottom); got {padding!r}."
            )
        left, right, top, bottom = sides
        self.padding = (left, right, top, bottom)
        self.window = Window((1, 1), padding=((top, bottom), (left, right)))

    def forward(self, input: Any) -> Tensor:
        return F.pad(input, self.padding, self.mode)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return str(self.padding)


class ReflectionPad2d(_Pad2d):
    """A border that mirrors the image about its edge pixels, narrower than the image itself.

    Parameters
    ----------
    padding : int or (left, right, top, bottom)
    """

    mode = "reflect"


class ZeroPad2d(_Pad2d):
    """A border of zeros.

    Parameters
    ----------
    padding : int or (left, right, top, bottom)
    """

    mode = "constant"


class ReflectionBorder(Module):
    """A mirrored border that may be wider than the image: it is then reflected to and fro.

    The paper's "buffer zone" around the image (section 4). `ReflectionPad2d` refuses such a width,
    as its namesake in PyTorch does.

    Parameters
    ----------
    width : int
        Pixels on each of the four sides.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.window = Window.of(1, padding=width)

    def forward(self, input: Any) -> Tensor:
        return reflect_border(input, self.width, self.width, self.width, self.width)

    def extra_repr(self) -> str:
        return str(self.width)


class Upsample(Module):
    """Resize each map; see `tinydilate.functional.interpolate`.

    Parameters
    ----------
    size : int or (H, W), optional
        The output's size; either this or ``scale_factor`` is given.
    scale_factor : number or (rows, columns), optional
        Output pixels per input pixel.
    mode : {"nearest", "bilinear"}
    align_corners : bool, optional
        Whether the corner pixels' centres coincide (bilinear only); by default the corners of the
        images do, so that output p lies at input (p + 1/2) / scale - 1/2.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        if (size is None) == (scale_factor is None):
            raise ShapeError("Upsample expected either size or scale_factor; got both or neither.")
        self.size, self.scale_factor = size, scale_factor
        self.mode, self.align_corners = mode, align_corners

    def forward(self, input: Any) -> Tensor:
        return F.interpolate(  # type: ignore[no-any-return]
            input, self.size, self.scale_factor, self.mode, self.align_corners
        )

    def extra_repr(self) -> str:
        size = f"size={self.size}" if self.size is not None else f"scale_factor={self.scale_factor}"
        return f"{size}, mode={self.mode!r}"


# ---- loss ------------------------------------------------------------------------------------


class CrossEntropyLoss(Module):
    """Minus the logarithm of the probability given to the truth.

    See `tinydilate.functional.cross_entropy`.

    Parameters
    ----------
    weight : (C,), optional
        How much each class counts.
    ignore_index : int
        Label of the pixels that do not count.
    reduction : {"mean", "sum", "none"}
    label_smoothing : float
        Share of the truth that is spread over all classes.
    """

    def __init__(
        self,
        weight: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight = None if weight is None else Buffer(weight)
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Any, target: Any) -> Tensor:
        return F.cross_entropy(  # type: ignore[no-any-return]
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
