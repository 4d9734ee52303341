"""Every error that tinydilate raises on purpose.

Each message is written in three parts: what was expected, what came, and the next move.
Every class also derives from the built-in exception that a NumPy user would expect, so that
``except ValueError`` keeps working.
"""

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path


def program() -> str:
    """How to call the command line, as it was called: for advice that can be typed as it stands."""
    called = Path(sys.argv[0])
    return str(called) if called.stem == "tinydilate" else "tinydilate"


def meant(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name: " Did you mean ...?", or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {near[0]}?" if near else ""


def listed(names: Iterable[object], most: int = 6) -> str:
    """The first names, and how many there are more."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


class TinydilateError(Exception):
    """The common ancestor: ``except TinydilateError`` catches all that we raise on purpose."""


class ShapeError(TinydilateError, ValueError):
    """Arrays, windows or sizes that do not fit each other."""


class PositionError(ShapeError, IndexError):
    """An index beyond the end of an axis; it ends a ``for`` loop over a tensor."""


class DtypeError(TinydilateError, TypeError):
    """A number type that the operation does not take, or two types mixed."""


class DeviceError(TinydilateError, RuntimeError):
    """Tensors on different devices, or a device that is not there."""


class GraphError(TinydilateError, RuntimeError):
    """A backward pass that cannot be run."""


class GradcheckError(TinydilateError, AssertionError):
    """A gradient that is not the slope of its function, or a point where there is no slope."""


class FieldError(TinydilateError, ValueError):
    """A receptive field that has no one answer, or that the analysis cannot tell."""


class MissingNameError(TinydilateError, AttributeError):
    """A name that is not here, such as one of PyTorch's."""


class KernelError(TinydilateError, RuntimeError):
    """A kernel that is missing on a device, or that Numba could not compile."""


class DataError(TinydilateError, ValueError):
    """Input data that cannot be used: labels out of range, broken files, empty data sets."""


class ConfigError(TinydilateError, ValueError):
    """An option or a configuration file that makes no sense."""
