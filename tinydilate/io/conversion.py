"""Weights of others, written once as ours: a safetensors file that says what it is for.

The file that comes out has Caffe's names, the shapes of our networks, float32, and a note with all
that prediction needs: which network it is, its classes and colours, the mean pixel. The note also
keeps the name, size and SHA-256 of the file that it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tinydilate.device import Array
from tinydilate.errors import ConfigError, DataError
from tinydilate.io.checkpoint import write_stored
from tinydilate.io.mapped import MappedFile, Shape, Stored, check_finite
from tinydilate.io.recognition import DamagedError
from tinydilate.io.vgg import FINAL, MEAN, is_vgg
from tinydilate.io.weights import (
    Found,
    Loaded,
    Plan,
    Report,
    Weights,
    find,
    fitting,
    make_plan,
    read_weights,
)
from tinydilate.models import PUBLISHED, front_end
from tinydilate.models.published import PARTS

VGG = "vgg16"
TARGETS = (*PUBLISHED, VGG)
_BLOCK = 2**24  # bytes that are hashed at once


class Conversion(NamedTuple):
    """What `convert_weights` did.

    Attributes
    ----------
    network : str
        Which network the weights are for; "" if it is none that we know.
    target : str
    sha256 : str
        Of the source.
    report : Report
    """

    network: str
    target: str
    sha256: str
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {**self._asdict(), "report": self.report.to_dict()}


def convert_weights(
    source: Path | str,
    target: Path | str,
    network: str | None = None,
    *,
    part: str = "whole",
    colours: str | None = None,
    progress: bool = False,
) -> Conversion:
    """Write the weights of a file as safetensors, whole or not at all.

    The numbers pass through in small parts, so that it takes little memory.

    Parameters
    ----------
    source : path
        What `read_weights` reads.
    target : path
        Usually ends in ``.safetensors``.
    network : {"dilation8_voc", ..., "vgg16"}, optional
        What the weights are for. By default found out from the layers' names and shapes; a file of
        none of these networks is converted as it is, and has no note about one.
    part : {"whole", "front end"}
        Of a published network that is named; its front end ends with "final" or "fc-final".
    colours : {"torchvision", "caffe"}, optional
        See `tinydilate.io.weights.load_weights`. The colours of a VGG-16 become Caffe's.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    DataError
        If the source cannot be read or the target not be written, or a layer of the network is
        missing or has another shape, or a number is not finite.
    ConfigError
        If there is no such network, or the target is the source.
    """
    _check_options(network, part)
    weights = read_weights(source)
    target = Path(target)
    if target.exists() and target.samefile(weights.path):
        raise ConfigError(
            f"expected another file to write to; {target} is the one to read. Choose a new name."
        )
    found = find(weights, MEAN, colours)
    network = _recognise(found) if network is None else network
    plan = _plan(network, part, weights, found)
    written = {name: _Float32(stored, name) for name, stored in plan.pairs.items()}
    total = weights.file.size + sum(each.size * each.dtype.itemsize for each in written.values())
    with tqdm(
        total=total, desc="converting", unit="B", unit_scale=True, leave=False,
        disable=not progress,
    ) as bar:  # fmt: skip
        sha256 = _sha256(weights.file, bar.update)
        said = weights.note if isinstance(weights.note, dict) else {}  # one of ours, by a recipe
        note = {**said, "source": describe_source(weights, sha256)}
        if network:
            note["published"] = describe(network, part)
        try:
            write_stored(target, written, note, bar.update)
        except DamagedError as error:
            raise DataError(
                f"expected numbers in every layer; got {weights.path}, where {error}. Nothing was "
                "written. Take another file."
            ) from None
    report = Report(
        str(weights.path), weights.format, plan.loaded, plan.missing, plan.left_over, found.folded
    )
    return Conversion(network, str(target), sha256, report)


def _check_options(network: str | None, part: str) -> None:
    if network not in (None, *TARGETS):
        raise ConfigError(
            f"expected a network to convert for, one of {', '.join(TARGETS)}; got {network!r}."
        )
    if part not in PARTS:
        raise ConfigError(f"expected part to be {' or '.join(PARTS)}; got {part!r}.")
    if part != "whole" and network not in PUBLISHED:
        raise ConfigError(
            f"expected the name of a published network with the part {part!r}, such as "
            f"dilation8_voc; got {network or 'none'}. `tinydilate convert` takes it as --as NAME."
        )


# ---- the note --------------------------------------------------------------------------------


def describe_source(weights: Weights, sha256: str) -> dict[str, Any]:
    """Where a converted file came from."""
    return {
        "file": weights.path.name,
        "bytes": weights.file.size,
        "sha256": sha256,
        "format": weights.format,
    }


def describe(network: str, part: str = "whole") -> dict[str, Any]:
    """What a converted file says about its network, as JSON can hold it."""
    if network == VGG:
        return {"name": VGG, "mean": list(MEAN)}
    published = PUBLISHED[network]
    classes = published.classes
    return {
        "name": network,
        "part": part,
        "dataset": classes.dataset,
        "classes": list(classes.names),
        "palette": [list(colour) for colour in classes.palette],
        "mean": list(classes.mean),
        "zoom": published.zoom,
        "stride": published.stride,
        "border": published.border,
        "input_size": list(published.input_size),
    }


# ---- which network ---------------------------------------------------------------------------


class Places(NamedTuple):
    """What a network has.

    Attributes
    ----------
    shapes : dict of names to shapes
    fixed : list of str
        Layers that are not learnt, and that a file may have or not.
    """

    shapes: dict[str, Shape]
    fixed: list[str]


def places_of(network: str, part: str = "whole") -> Places:
    """Name and shape of each array of a network."""
    if network == VGG:
        module = front_end(1, border=False, device="meta")
    else:
        module = PUBLISHED[network].build(part=part, device="meta")
    parameters = dict(module.named_parameters())
    fixed = [name for name, each in parameters.items() if not each.requires_grad]
    shapes = {
        name: each.shape
        for name, each in parameters.items()
        if network != VGG or not _of_final(name)
    }
    return Places(shapes, fixed)


def _of_final(name: str) -> bool:
    return name.rpartition(".")[0] in FINAL


def _recognise(found: Found) -> str:
    """The network whose layers' names and shapes the file has; "" if there is none."""
    names = set(found.arrays)
    for network in PUBLISHED:
        places, fixed = places_of(network)
        needed = {name: shape for name, shape in places.items() if name not in fixed}
        if set(needed) <= names <= set(places) and fitting(needed, found):
            return network
    return VGG if is_vgg(found.arrays) and fitting(places_of(VGG).shapes, found) else ""


def _plan(network: str, part: str, weights: Weights, found: Found) -> Plan:
    if network:
        places, fixed = places_of(network, part)
        return make_plan(places, weights, found, fixed)
    loaded = tuple(
        Loaded(name, stored.shape, found.sources[name], stored.shape, stored.kind)
        for name, stored in found.arrays.items()
    )
    return Plan(found.arrays, loaded, (), ())


# ---- numbers ---------------------------------------------------------------------------------


class _Float32(Stored):
    """Floats of any width as float32, checked; whole numbers stay as they are."""

    def __init__(self, stored: Stored, name: str) -> None:
        super().__init__(stored.shape, np.float32 if stored.dtype.kind == "f" else stored.dtype)
        self._stored, self._name = stored, name

    def numbers(self) -> Array:
        return np.concatenate(list(self.parts()))

    def parts(self) -> Iterator[Array]:
        for part in self._stored.parts():
            with np.errstate(all="ignore"):  # a float64 that is too large becomes infinite
                converted = part.astype(self.dtype, copy=False)
            try:
                check_finite(converted)
            except DamagedError as error:
                raise DamagedError(f"{self._name} is broken: {error}") from None
            yield converted


def _sha256(file: MappedFile, watch: Callable[[int], Any]) -> str:
    digest = hashlib.sha256()
    for start in range(0, file.size, _BLOCK):
        stop = min(file.size, start + _BLOCK)
        digest.update(file.bytes[start:stop].data)
        file.forget(start, stop)
        watch(stop - start)
    return digest.hexdigest()
