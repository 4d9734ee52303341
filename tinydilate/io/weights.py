"""Weights from files of others: `read_weights` looks at them, `load_weights` fills a network.

Four formats are read, each on a page of its own: ``.caffemodel`` (`tinydilate.io.caffe`), ``.pth``
(`tinydilate.io.pth`), ``.npz`` (`tinydilate.io.npz`) and safetensors (`tinydilate.io.checkpoint`).
Which it is, the content tells, not the name. Nothing in any of them is carried out.

The file is mapped, not read: a number moves once, from the file into the parameter. So loading
takes as long as copying the file, and no memory beside the weights (benchmarks/weights.py).

A network is filled wholly or not at all: every layer that the file does not have, and every shape
that differs, is said before anything is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinydilate.autograd import Tensor
from tinydilate.device import Array, write
from tinydilate.errors import ConfigError, DataError, DeviceError, listed
from tinydilate.io.archives import Member, read_directory
from tinydilate.io.caffe import may_be_caffe, read_caffe
from tinydilate.io.checkpoint import map_checkpoint
from tinydilate.io.mapped import MappedFile, Shape, Stored, check_finite, copy_numbers
from tinydilate.io.npz import is_npz, read_npz
from tinydilate.io.pth import is_zip_layout, read_legacy_layout, read_zip_layout
from tinydilate.io.recognition import (
    HEAD,
    DamagedError,
    UnwantedError,
    foreign,
    is_pickle,
    is_safetensors,
    is_zip,
)
from tinydilate.io.vgg import (
    FINAL,
    TORCHVISION_COLOURS,
    Pixel,
    caffe_colours,
    caffe_names,
    fold_colours,
    is_torchvision,
    is_vgg,
)
from tinydilate.nn import Module

COLOURS = ("torchvision", "caffe")

# ---- reading ---------------------------------------------------------------------------------


class Weights(Mapping[str, Array]):
    """The arrays of a file by name, looked at when they are asked for.

    ``weights["conv1_1.weight"]`` is a read-only view of the mapped file, or, where the numbers do
    not lie in one piece, a copy.

    Attributes
    ----------
    path : Path
    format : str
        "caffemodel", "pth", "legacy pth", "npz" or "safetensors".
    stored : dict of names to Stored
        Shapes and dtypes, without the numbers.
    note : anything
        What tinydilate wrote beside the arrays; None in files of other programs.
    file : MappedFile
    """

    def __init__(self, file: MappedFile, kind: str, stored: dict[str, Stored], note: Any) -> None:
        self.file, self.path, self.format = file, file.path, kind
        self.stored, self.note = stored, note

    def __getitem__(self, name: str) -> Array:
        return self.stored[name].array()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        return f"Weights({str(self.path)!r}, {self.format}, {len(self)} arrays)"


def read_weights(path: Path | str) -> Weights:
    """Look into a file of weights; the numbers are not read yet.

    Parameters
    ----------
    path : path
        A ``.caffemodel``, a PyTorch state dictionary (``.pth``, ``.pt``, ``.bin``; either layout),
        an ``.npz`` or a safetensors file. Recognised by its content.

    Returns
    -------
    Weights

    Raises
    ------
    DataError
        If there is no such file, or it is none of these, or damaged or cut short.

    Examples
    --------
    ::

        weights = read_weights("dilation8_pascal_voc.caffemodel")
        weights["fc-final.weight"].shape      # (21, 4096, 1, 1)
    """
    file = MappedFile(path)
    try:
        kind, stored, note = _read(file)
    except DamagedError as error:
        again = " Copy or download it again, or take another file."
        raise DataError(
            f"expected a file of weights that is whole; got {file.path} of {file.size:,} bytes: "
            f"{error}.{'' if isinstance(error, UnwantedError) else again}"
        ) from None
    return Weights(file, kind, stored, note)


def _read(file: MappedFile) -> tuple[str, dict[str, Stored], Any]:
    head = file.head(HEAD)
    if what := foreign(head):
        raise DataError(
            f"expected weights as .caffemodel, .pth, .npz or safetensors; got {file.path}, which "
            f"{what}."
        )
    if is_zip(head):
        return _read_archive(file, read_directory(file))
    if is_pickle(head):
        return "legacy pth", read_legacy_layout(file), None
    if is_safetensors(head):
        return "safetensors", *map_checkpoint(file)
    if may_be_caffe(head):
        return "caffemodel", read_caffe(file), None
    raise DataError(
        f"expected weights as .caffemodel, .pth, .npz or safetensors; got {file.path}, which is "
        "another kind of file."
    )


def _read_archive(
    file: MappedFile, members: dict[str, Member]
) -> tuple[str, dict[str, Stored], Any]:
    if is_zip_layout(members):
        return "pth", read_zip_layout(file, members), None
    if is_npz(members):
        return "npz", read_npz(file, members), None
    raise DamagedError("it is an archive of other things than arrays: unpack it first")


# ---- what goes where -------------------------------------------------------------------------


class Loaded(NamedTuple):
    """One array that was found for a place.

    Attributes
    ----------
    name : str
        In the network.
    shape : tuple of int
    source : str
        Its name in the file.
    source_shape : tuple of int
    dtype : str
        Of the numbers in the file.
    """

    name: str
    shape: Shape
    source: str
    source_shape: Shape
    dtype: str


class Report(NamedTuple):
    """What `load_weights` or `convert_weights` did.

    Attributes
    ----------
    path : str
    format : str
        See `Weights`.
    loaded : tuple of Loaded
    missing : tuple of str
        What the network has and the file has not, and which kept what it had.
    left_over : tuple of str
        What the file has and the network has not.
    folded : bool
        Whether torchvision's colours were put into the first layer; see `tinydilate.io.vgg`.
    """

    path: str
    format: str
    loaded: tuple[Loaded, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    folded: bool

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {**self._asdict(), "loaded": [each._asdict() for each in self.loaded]}


class Found(NamedTuple):
    """The arrays of a file under Caffe's names, in our colours.

    Attributes
    ----------
    arrays : dict of names to Stored
    sources : dict of names to names in the file
    folded : bool
    """

    arrays: dict[str, Stored]
    sources: dict[str, str]
    folded: bool


def find(weights: Weights, mean: Pixel | None = None, colours: str | None = None) -> Found:
    """Arrays under Caffe's names; those of torchvision's VGG-16 for our colours.

    Parameters
    ----------
    weights : Weights
    mean, colours
        See `load_weights`.

    Raises
    ------
    ConfigError
        If the mean is needed and not given, or there are no such colours.
    DataError
        If it is a VGG of another kind.
    """
    if colours not in (None, *COLOURS):
        raise ConfigError(f"expected colours {' or '.join(COLOURS)}; got {colours!r}.")
    if not is_torchvision(weights.stored):
        return Found(dict(weights.stored), {name: name for name in weights}, False)
    names = caffe_names(weights.stored)
    arrays = {names[name]: stored for name, stored in weights.stored.items()}
    sources = {ours: theirs for theirs, ours in names.items()}
    if colours == "caffe":
        return Found(arrays, sources, False)
    if mean is None:
        raise ConfigError(
            "expected mean=(blue, green, red), the pixel that the network's images have subtracted "
            f"(see tinydilate.classes): {weights.path} has torchvision's names, so its first layer "
            "is made for other colours and has to be changed for ours. If it wants Caffe's "
            'colours after all, say colours="caffe".'
        )
    _check_mean(mean)
    first = ("conv1_1.weight", "conv1_1.bias")
    if first[1] not in arrays:
        raise DataError(
            f"expected features.0.bias in {weights.path}; there is none. Take another file."
        )
    wanted = caffe_colours(mean)
    folded = fold_colours(arrays[first[0]], arrays[first[1]], TORCHVISION_COLOURS, wanted)
    arrays |= dict(zip(first, folded, strict=True))
    return Found(arrays, sources, True)


def _check_mean(mean: Any) -> None:
    numbers = np.asarray(mean)
    whole = numbers.shape == (3,) and numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()
    if not whole or not 1 < numbers.max() <= 255 or numbers.min() < 0:
        raise ConfigError(
            "expected mean as three levels from 0 to 255, blue, green and red, such as "
            f"tinydilate.classes.VOC.mean; got {mean!r:.80}."
        )


class Plan(NamedTuple):
    """Which array goes to which place, and what is without a partner."""

    pairs: dict[str, Stored]
    loaded: tuple[Loaded, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


def make_plan(
    places: Mapping[str, Shape], weights: Weights, found: Found, allow_missing: Sequence[str] = ()
) -> Plan:
    """Find an array for each place, or say which have none.

    Parameters
    ----------
    places : mapping of names to shapes
        What a network has.
    weights : Weights
    found : Found
    allow_missing : sequence of str
        Names or patterns of layers that need not be there.

    Raises
    ------
    DataError
        If an array is missing that may not be, or has another shape.
    """
    missing = tuple(name for name in places if name not in found.arrays)
    refused = [name for name in missing if not _named_by(allow_missing, name)]
    pairs, reshaped = {}, []
    for name, shape in places.items():
        stored = found.arrays.get(name)
        if stored is None:
            continue
        if _fits(stored.shape, shape):
            pairs[name] = stored.reshaped(shape)
        else:
            reshaped.append(f"{name} {stored.shape} in the file, {shape} in the network")
    if refused or reshaped:
        raise DataError(_differences(weights, refused, reshaped, list(found.sources.values())))
    loaded = tuple(
        Loaded(
            name, places[name], found.sources[name],
            weights.stored[found.sources[name]].shape, weights.stored[found.sources[name]].kind,
        )
        for name in pairs
    )  # fmt: skip
    left_over = tuple(source for name, source in found.sources.items() if name not in places)
    return Plan(pairs, loaded, missing, left_over)


def _fits(stored: Shape, wanted: Shape) -> bool:
    """The same shape, or an inner product's weights (out, in) for a window of as many taps."""
    dense = len(stored) == 2 and len(wanted) == 4 and stored[0] == wanted[0]
    return stored == wanted or (dense and stored[1] == math.prod(wanted[1:]))


def fitting(places: Mapping[str, Shape], found: Found) -> bool:
    """Whether every place has an array that fits."""
    return all(
        name in found.arrays and _fits(found.arrays[name].shape, shape)
        for name, shape in places.items()
    )


def _named_by(patterns: Iterable[str], name: str) -> bool:
    layer = name.rpartition(".")[0]
    return any(fnmatchcase(name, each) or fnmatchcase(layer, each) for each in patterns)


def _check_patterns(patterns: Sequence[str], places: Mapping[str, Shape]) -> None:
    if isinstance(patterns, str):
        raise ConfigError(f"expected allow_missing as a list of names; got the text {patterns!r}.")
    for pattern in patterns:
        if not any(_named_by([pattern], name) for name in places):
            raise ConfigError(
                f"expected names of layers that may be missing, such as final or ctx_*; the "
                f"network has no layer {pattern!r}. It has {listed(list(places))}."
            )


def _differences(
    weights: Weights, missing: list[str], reshaped: list[str], names: list[str]
) -> str:
    parts = [f"missing {listed(missing)}"] if missing else []
    parts += [f"of another shape {listed(reshaped)}"] if reshaped else []
    there = f"The file has {listed(names)}. " if missing else ""
    advice = "or name layers that may keep what they have: allow_missing" if missing else ""
    return (
        f"expected {weights.path} to have every layer of the network; got one with these "
        f"differences: {'; '.join(parts)}. Nothing was loaded. {there}Build the network that the "
        f"file is for{', ' if advice else ''}{advice}."
    )


# ---- loading ---------------------------------------------------------------------------------


def load_weights(
    network: Module,
    source: Path | str | Weights,
    *,
    allow_missing: Sequence[str] = (),
    mean: Pixel | None = None,
    colours: str | None = None,
    progress: str = "",
) -> Report:
    """Copy the weights of a file into the parameters of the same names.

    Weights of an inner product (out, in) become those of a window (out, C, KH, KW) with as many
    taps. torchvision's VGG-16 gets Caffe's names, and its first layer is made to take our colours.
    Half precision and float64 are converted to the network's dtype.

    Where all numbers come from the file, build the network with ``weights="zeros"``: drawing
    random ones takes longer than loading.

    Parameters
    ----------
    network : Module
        With the names of the published files, as those in `tinydilate.models` have.
    source : path or Weights
    allow_missing : sequence of str
        Layers that keep what they have if the file has none, such as ``["ctx_*"]``. The layer
        behind fc7 need not be named when the file is a VGG-16: it has none.
    mean : (blue, green, red), optional
        The pixel that the network's images have subtracted, 0 to 255. Needed for torchvision's
        VGG-16. Weights in Caffe's colours are loaded as they are, as in the paper's code, whatever
        mean they were trained with.
    colours : {"torchvision", "caffe"}, optional
        Which colours a file with torchvision's names was trained for; torchvision's by default.
    progress : str
        Title of a bar; none is shown without it.

    Returns
    -------
    Report

    Raises
    ------
    DataError
        If a layer is missing, or has another shape, or one that may be missing would stay zeros:
        then nothing was loaded. If a layer holds numbers that are not finite: then the network has
        to be built again.
    ConfigError
        If an option makes no sense.
    DeviceError
        If the network is on the meta device.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    tensors = dict(network._named_tensors())
    if any(tensor.device == "meta" for tensor in tensors.values()):
        raise DeviceError(
            "expected a network with memory to load into; got one on the meta device, which has "
            'shapes only. Give it memory first: network.to_empty("cpu").'
        )
    found = find(weights, mean, colours)
    places = {name: tensor.shape for name, tensor in tensors.items()}
    _check_patterns(allow_missing, places)
    if is_vgg(found.arrays):  # it ends where the paper's own layer begins
        allow_missing = (*allow_missing, *FINAL)
    plan = make_plan(places, weights, found, allow_missing)
    _refuse_zeros(tensors, plan.missing)
    total = sum(stored.size * stored.dtype.itemsize for stored in plan.pairs.values())
    with tqdm(
        total=total, desc=progress, unit="B", unit_scale=True, leave=False, disable=not progress
    ) as bar:
        for name, stored in plan.pairs.items():
            try:
                _fill(tensors[name], stored, bar.update)
            except DamagedError as error:
                raise DataError(
                    f"expected numbers in every layer; got {weights.path}, where {name} is broken: "
                    f"{error}. The network is filled in part: build it again, and take another "
                    "file."
                ) from None
    return Report(
        str(weights.path), weights.format, plan.loaded, plan.missing, plan.left_over, found.folded
    )


def _refuse_zeros(tensors: Mapping[str, Tensor], missing: Sequence[str]) -> None:
    """A network that was built for a file has zeros where the file has nothing."""
    for name in missing:
        array = tensors[name].data
        if name.endswith(".weight") and isinstance(array, np.ndarray) and not array.any():
            raise DataError(
                f"expected numbers for every layer; {name} is not in the file and would stay "
                'zeros, which no training moves. Build the network with weights="random".'
            )


def _fill(tensor: Tensor, stored: Stored, watch: Callable[[int], Any]) -> None:
    """Copy numbers into a tensor, wherever it is."""
    if tensor.device == "cuda":
        array = np.ascontiguousarray(stored.array())
        check_finite(array.reshape(-1))
        write(array, tensor.data)
        return
    flat = tensor.data.reshape(-1)
    start = 0
    for part in stored.parts():
        target = flat[start : start + part.size]
        copy_numbers(part, target)
        check_finite(target)  # while they are at hand, in the cache
        start += part.size
        watch(part.nbytes)
