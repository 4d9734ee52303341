"""A network as a few words that a file can hold: front end, context module, upsampling, classes.

A recipe says with a `Plan` what it trains, and a checkpoint what it holds. The published networks
are four of the plans: `Plan.published` knows them. Layers are named as in the published files, in
one line, so weights move from a VGG-16 to a front end, from a front end to a whole network, and
from one number of classes to another, by their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydilate import init, nn
from tinydilate.classes import Classes
from tinydilate.errors import ConfigError, DataError
from tinydilate.field import border_of, field_of
from tinydilate.models.contexts import DILATIONS, PADDINGS, VARIANTS, context
from tinydilate.models.front_ends import SMALL, VGG_16, front_end
from tinydilate.models.published import PUBLISHED
from tinydilate.models.rows import Conv, Drop, Pool, Row, readers_of

FRONT_ENDS: dict[str, tuple[Row, ...]] = {"vgg-16": VGG_16, "small": SMALL}
CONTEXTS = ("none", *VARIANTS)
PARTS = ("front end", "context", "whole")


def rows_of(table: Sequence[str]) -> tuple[Row, ...]:
    """A front end's table out of lines of text.

    ``"conv1_1 3 1 64"`` is a convolution: name, kernel, dilation, maps out. ``"pool1 pool"`` is a
    2x2 pooling, ``"drop6 drop 0.5"`` is dropout.

    Raises
    ------
    ConfigError
        If a line is none of these.
    """
    rows: list[Row] = []
    for line in table:
        words = line.split()
        try:
            if len(words) == 4:
                kernel, dilation, maps = (int(word) for word in words[1:])
                rows.append(Conv(words[0], kernel, dilation, maps))
            elif words[1:] == ["pool"]:
                rows.append(Pool(words[0]))
            elif len(words) == 3 and words[1] == "drop" and 0 <= float(words[2]) < 1:
                rows.append(Drop(words[0], float(words[2])))
            else:
                raise ValueError
        except ValueError:
            raise ConfigError(
                'expected the rows of a front end as in "conv1_1 3 1 64" (name, kernel, dilation, '
                f'maps), "pool1 pool" or "drop6 drop 0.5"; got {line!r}.'
            ) from None
    return tuple(rows)


class Plan(NamedTuple):
    """What a network is made of.

    Attributes
    ----------
    classes : Classes
        What its labels mean, and the mean pixel of its images.
    front_end : {"vgg-16", "small", "table"}
        Rows of the front end; see `front_end`.
    table : tuple of str
        The rows, as `rows_of` reads them, for "table".
    context : {"none", "basic", "large"}
    dilations, padding, prefix
        Of the context module; see `context`.
    final_name : str
        The front end's last layer.
    upsample : int
        How many times a fixed transposed convolution enlarges the scores at the end; 0 for none.
    divisor : float
        What a fixed first layer, "scale", divides the pixels by; 1 for none. VGG-16's weights take
        pixels of 0 to 255 minus the mean. A network that starts from random weights learns better
        from numbers around 1.
    """

    classes: Classes
    front_end: str = "vgg-16"
    table: tuple[str, ...] = ()
    context: str = "none"
    dilations: tuple[int, ...] = DILATIONS
    padding: str = "layers"
    prefix: str = "ctx"
    final_name: str = "final"
    upsample: int = 0
    divisor: float = 1.0

    @property
    def rows(self) -> tuple[Row, ...]:
        """The front end's rows, without its last layer."""
        return FRONT_ENDS.get(self.front_end) or rows_of(self.table)

    @property
    def published(self) -> str | None:
        """The name in `PUBLISHED` of a network that is built in the same way, if there is one."""
        for name in PUBLISHED:
            if self == plan_of_published(name):
                return name
        return None

    def cells(self) -> tuple[int, int]:
        """Border and stride of the front end, in pixels: (186, 8) for VGG-16.

        Raises
        ------
        ShapeError
            If the front end's table asks for a border that is not the same on both sides.
        """
        readers = readers_of(self.build("front end", device="meta"))
        return border_of(readers), int(field_of(readers).stride)

    def build(
        self,
        part: str = "whole",
        *,
        final_std: float = 0.001,
        noise: float = 0.01,
        absolute_noise: bool = False,
        device: str = "cpu",
        dtype: Any = np.float32,
        rng: init.Seed = None,
    ) -> nn.Sequential:
        """Make the network, or a part of it, without a border: images come with theirs.

        Parameters
        ----------
        part : {"whole", "front end", "context"}
            The context comes with the upsampling, if there is one.
        final_std : float
            Of the front end's last layer; see `front_end`.
        noise, absolute_noise
            Of the context module's start; see `context`.
        device, dtype, rng
            See `nn.Conv2d`. Front end and context each have a generator of their own.

        Raises
        ------
        ConfigError
            If a part is asked for that there is not, or the plan makes no sense.
        """
        if part not in PARTS or (part == "context" and self.context == "none"):
            raise ConfigError(
                f"expected a part out of {', '.join(PARTS)}, and a context module for the second; "
                f"got {part!r} and context {self.context!r}."
            )
        count = len(self.classes.names)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        front_rng, context_rng = (None, None) if device == "meta" else init.generator(rng).spawn(2)
        layers: list[tuple[str, nn.Module]] = []
        if part != "context" and self.divisor != 1:
            layers.append(("scale", _scale(self.divisor, device, dtype)))
        if part != "context":
            front = front_end(
                count,
                rows=self.rows,
                border=False,
                final_name=self.final_name,
                final_std=final_std,
                rng=front_rng,
                **options,
            )
            layers += front.named_children()
        if part != "front end" and self.context != "none":
            behind = context(
                count,
                self.context,
                self.dilations,
                padding=self.padding,
                noise=noise,
                absolute_noise=absolute_noise,
                upsample=self.upsample or None,
                prefix=self.prefix,
                rng=context_rng,
                **options,
            )
            layers += behind.named_children()
        return nn.Sequential(*layers)

    def to_note(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {**self._asdict(), "classes": self.classes._asdict()}


def _scale(divisor: float, device: str, dtype: Any) -> nn.Conv2d:
    """A fixed layer that divides each of three channels by a number."""
    layer = nn.Conv2d(3, 3, 1, groups=3, bias=False, device=device, dtype=dtype, rng=0)
    init.gaussian_(layer, 0.0, 1 / divisor).requires_grad_(False)  # width 0: the mean itself
    return layer


def plan_of_published(name: str) -> Plan:
    """The plan of a published network.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in PUBLISHED:
        raise ConfigError(
            f"expected a published network out of {', '.join(PUBLISHED)}; got {name!r}."
        )
    network = PUBLISHED[name]
    return Plan(
        network.classes,
        context=network.variant,
        dilations=network.dilations,
        padding=network.padding,
        prefix=network.prefix,
        final_name=network.final_name,
        upsample=network.upsample or 0,
    )


def plan_of_note(note: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_note` wrote, perhaps on the way through JSON.

    Raises
    ------
    DataError
        If the note is another one.
    """
    try:
        fields = dict(note)
        classes = dict(fields.pop("classes"))
        palette = tuple((int(r), int(g), int(b)) for r, g, b in classes.pop("palette"))
        blue, green, red = (float(level) for level in classes.pop("mean"))
        names = tuple(str(name) for name in classes.pop("names"))
        made = Classes(names=names, palette=palette, mean=(blue, green, red), **classes)
        table = tuple(str(row) for row in fields.pop("table"))
        dilations = tuple(int(d) for d in fields.pop("dilations"))
        plan = Plan(made, table=table, dilations=dilations, **fields)
        _check(plan)
        return plan
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"expected the plan of a network, as a recipe's run notes it; got another note "
            f"({error}). Name the network.safetensors of a run."
        ) from None


def _check(plan: Plan) -> None:
    """Refuse words that name nothing; numbers are refused by whoever builds with them."""
    known = {
        "front_end": (*FRONT_ENDS, "table"),
        "context": CONTEXTS,
        "padding": PADDINGS,
    }
    for name, choices in known.items():
        if getattr(plan, name) not in choices:
            raise ConfigError(
                f"expected {name} to be one of {', '.join(choices)}; got {getattr(plan, name)!r}."
            )
    plan.build(device="meta")
