"""Weights of others, written once as ours: a safetensors file that says what it is for.

The file that comes out has Caffe's names, the shapes of our networks, float32, and a note with all
that prediction needs: which network it is, its classes and colours, the mean pixel. The note also
keeps the name, size and SHA-256 of the file that it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
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
    if network not in (None, *TARGETS):
        raise ConfigError(
            f"expected a network to convert for, one of {', '.join(TARGETS)}; got {network!r}."
        )
    weights = read_weights(source)
    target = Path(target)
    if target.exists() and target.samefile(weights.path):
        raise ConfigError(
            f"expected another file to write to; {target} is the one to read. Choose a new name."
        )
    found = find(weights, MEAN, colours)
    network = _recognise(found) if network is None else network
    plan = _plan(network, weights, found)
    written = {name: _Float32(stored, name) for name, stored in plan.pairs.items()}
    total = weights.file.size + sum(each.size * each.dtype.itemsize for each in written.values())
    with tqdm(
        total=total, desc="converting", unit="B", unit_scale=True, leave=False,
        disable=not progress,
    ) as bar:  # fmt: skip
        sha256 = _sha256(weights.file, bar.update)
        origin = {"file": weights.path.name, "bytes": weights.file.size, "sha256": sha256}
        note = {"source": {**origin, "format": weights.format}}
        if network:
            note["published"] = describe(network)
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


def describe(network: str) -> dict[str, Any]:
    """What a converted file says about its network, as JSON can hold it."""
    if network == VGG:
        return {"name": VGG, "mean": list(MEAN)}
    published = PUBLISHED[network]
    classes = published.classes
    return {
        "name": network,
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


def places_of(network: str) -> dict[str, Shape]:
    """Name and shape of each array that a network has."""
    if network == VGG:
        state = front_end(1, border=False, device="meta").state_dict()
        return {name: each.shape for name, each in state.items() if not _of_final(name)}
    return _shapes(PUBLISHED[network].build(device="meta").state_dict())


def _shapes(state: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: array.shape for name, array in state.items()}


def _of_final(name: str) -> bool:
    return name.rpartition(".")[0] in FINAL


def _recognise(found: Found) -> str:
    """The network whose layers' names and shapes the file has; "" if there is none."""
    names = set(found.arrays)
    for network in PUBLISHED:
        places = places_of(network)
        if names == set(places) and fitting(places, found):
            return network
    return VGG if is_vgg(found.arrays) and fitting(places_of(VGG), found) else ""


def _plan(network: str, weights: Weights, found: Found) -> Plan:
    if network:
        return make_plan(places_of(network), weights, found)
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
