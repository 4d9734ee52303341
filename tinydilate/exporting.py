"""Networks for other programs: what is written, and what stands in it beside the weights.

==============  ==============================================================================
file            what it holds
==============  ==============================================================================
safetensors     the weights by name, and a note: which network, classes, colours, mean pixel
pth             the weights by name, as a state dictionary that ``torch.load`` reads
ONNX            weights and graph, and the note's facts in ``metadata_props``
==============  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydilate import nn
from tinydilate.errors import ConfigError
from tinydilate.io.checkpoint import save_checkpoint
from tinydilate.io.onnx import OPSET, Exported, export_onnx
from tinydilate.io.pth_writer import save_state_dict
from tinydilate.io.weights import read_weights
from tinydilate.models import Published, plan_of_note
from tinydilate.predict import PlannedRecipe, TrainedPlanned, TrainedPublished, load_any


class Source(NamedTuple):
    """A network that is to be written, and what is known of it.

    Attributes
    ----------
    network : nn.Module
    note : dict
        What stands in a checkpoint's header: "network" or "published", as JSON can hold it.
    input_shape : tuple of int
        (N, C, H, W) that suits it.
    origin : str
        Where the weights came from.
    """

    network: nn.Module
    note: dict[str, Any]
    input_shape: tuple[int, ...]
    origin: str

    def metadata(self) -> dict[str, Any]:
        """The facts that a user of the network needs, each by its name."""
        known = self.note.get("published") or self.note.get("network") or self._planned()
        kept = ("name", "dataset", "classes", "palette", "mean", "std", "stride", "zoom")
        facts = {key: known[key] for key in kept if key in known}
        if "published" in self.note or "plan" in self.note:
            facts["input"] = "blue, green, red from 0 to 255, minus the mean"
            makes_border = any(isinstance(m, nn.ReflectionBorder) for m in self.network.modules())
            facts["border"] = 0 if makes_border else known.get("border", 0)
        elif "network" in self.note:
            facts["input"] = "grey from 0 (black) to 1 (white), minus the mean, divided by the std"
        return facts

    def _planned(self) -> dict[str, Any]:
        """What the plan says that a recipe's run noted; nothing of other networks."""
        if "plan" not in self.note:
            return {}
        plan = plan_of_note(self.note["plan"])
        border, stride = plan.cells()
        facts = plan.classes._asdict()
        return {**facts, "classes": plan.classes.names, "stride": stride, "border": border}


def open_source(path: Path | str, network: str | None = None, border: bool = False) -> Source:
    """A network from a run folder or from a checkpoint, with its weights.

    Parameters
    ----------
    path : path
    network : {"joint", "context", "alone", "front"}, optional
        Which of a run's networks; the first of these that is there by default.
    border : bool
        Have a published network reflect the image about its edges itself, by 186 pixels, or one of
        a recipe by its own border. Otherwise, as in the published files, images come with it.

    Raises
    ------
    DataError
        If there is none, or the file is damaged.
    ConfigError
        If the border is asked for where the network has one.
    """
    trained = load_any(path, network)
    note = read_weights(trained.path).note
    if isinstance(trained, TrainedPublished | TrainedPlanned):
        recipe = trained.recipe
        known = recipe if isinstance(recipe, PlannedRecipe) else recipe.published
        shape = (1, 3, *known.input_size)
        source = Source(trained.network, note, shape, str(trained.path))
        return with_border(source, known) if border else source
    if border:
        raise ConfigError(
            f"expected a published network to give a border to; {trained.path} is one of a run, "
            "which has its own. Leave --border out."
        )
    size = trained.recipe.config.scene_size
    shape = (1, trained.recipe.channels, size, size)
    return Source(trained.network, note, shape, str(trained.path))


def with_border(source: Source, published: Published | PlannedRecipe) -> Source:
    """The same with the reflection in front, for images without a border."""
    layers = source.network.named_children()
    network = nn.Sequential(("border", nn.ReflectionBorder(published.border)), *layers).eval()
    height, width = (size - 2 * published.border for size in published.input_size)
    return source._replace(network=network, input_shape=(1, 3, height, width))


class Written(NamedTuple):
    """A file that was written.

    Attributes
    ----------
    kind : str
        "ONNX", "PyTorch" or "safetensors".
    path : str
    size : int
        Bytes.
    graph : dict
        Of an ONNX file: inputs, outputs, operators and opset; else empty.
    """

    kind: str
    path: str
    size: int
    graph: dict[str, Any]


def write_exports(
    source: Source,
    *,
    onnx: Path | str | None = None,
    pth: Path | str | None = None,
    safetensors: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    dynamic: Sequence[str] = (),
    opset: int = OPSET,
    progress: bool = False,
) -> list[Written]:
    """Write a network to one file or several.

    Parameters
    ----------
    source : Source
    onnx, pth, safetensors : path, optional
        What to write; each file is whole or not there.
    input_shape, dynamic, opset
        Of the ONNX file; see `export_onnx`. The shape is by default the source's.
    progress : bool
        Whether to show a bar for what takes longer than a second.

    Raises
    ------
    ConfigError
        If nothing is to be written, or the network cannot be said in ONNX.
    DataError
        If a file cannot be written.
    """
    if onnx is pth is safetensors is None:
        raise ConfigError(
            "expected a file to write; got none. Name one or several of --onnx OUT.onnx, "
            "--pth OUT.pth and --safetensors OUT.safetensors."
        )
    network = source.network
    named = [*network.named_parameters(), *network.named_buffers()]
    arrays = {name: tensor.data for name, tensor in named}  # as they lie, not copied
    bar = "writing" if progress else ""
    written = []
    if onnx is not None:  # first: it may refuse the network
        shape = source.input_shape if input_shape is None else input_shape
        exported = export_onnx(
            network, onnx, shape, dynamic=dynamic, opset=opset,
            metadata=source.metadata(), progress=bar,
        )  # fmt: skip
        written.append(Written("ONNX", str(onnx), exported.size, _graph(exported)))
    if pth is not None:
        save_state_dict(pth, arrays, bar)
        written.append(Written("PyTorch", str(pth), Path(pth).stat().st_size, {}))
    if safetensors is not None:
        save_checkpoint(safetensors, arrays, source.note)
        size = Path(safetensors).stat().st_size
        written.append(Written("safetensors", str(safetensors), size, {}))
    return written


def _graph(exported: Exported) -> dict[str, Any]:
    return {
        "opset": exported.opset,
        "inputs": {name: list(shape) for name, shape in exported.inputs.items()},
        "outputs": {name: list(shape) for name, shape in exported.outputs.items()},
        "operators": exported.operators,
        "parameters": exported.parameters,
    }
