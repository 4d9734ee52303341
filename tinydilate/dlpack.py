"""Handing an array to another library without a copy, by the DLPack protocol.

Whoever calls ``torch.from_dlpack(x)`` or ``cupy.from_dlpack(x)`` gets from ``x.__dlpack__()`` a
*capsule*: a Python object around a C structure that says where the numbers lie, on which device,
and of which shape and type they are. With it goes a function to be called when the other library
needs the numbers no more. Until then the array is kept here. NumPy's arrays can do all this by
themselves; ours on the GPU cannot, so here is the protocol in ctypes.

Source: https://dmlc.github.io/dlpack/latest/c_api.html, the structure without a version, which
every library reads.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np

CPU, GPU = 1, 2  # kinds of devices, by the protocol's numbers
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # NumPy's kinds of numbers, by the protocol's


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_python = ctypes.pythonapi
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)  # gets a capsule that nobody else holds
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _python)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _python)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)

_NAME = b"dltensor"  # whoever takes the numbers over renames the capsule
_lent: dict[int, Any] = {}  # address of each structure that somebody holds: all that it needs


def _take_back(address: int) -> None:
    """Called by the other library when it is done."""
    *_, at_its_end = _lent.get(address, (None,))
    if at_its_end is not None:
        at_its_end()
    _lent.pop(address, None)


def _forget(capsule: int) -> None:
    """Called by Python when a capsule goes; one with its first name was never used."""
    if _is_valid(capsule, _NAME):
        _lent.pop(_pointer(capsule, _NAME), None)


# As functions of C, which must not go away before those who call them.
_deleter, _destructor = _Deleter(_take_back), _Destructor(_forget)


def capsule(
    address: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device: tuple[int, int],
    owner: Any,
    at_its_end: Callable[[], None] | None = None,
) -> Any:
    """A capsule for numbers in C order, which keeps ``owner`` alive as long as it is needed.

    Parameters
    ----------
    address : int
        Where the numbers lie.
    shape : tuple of int
    dtype : numpy.dtype
    device : (int, int)
        `CPU` or `GPU`, and which one.
    owner : object
        What must not go away.
    at_its_end : function, optional
        Called when whoever used the numbers is done, before ``owner`` goes.
    """
    sizes = ctypes.c_int64 * max(1, len(shape))
    lengths = sizes(*shape)
    strides = sizes(*(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    managed = _Managed(
        _Tensor(
            data=address or None,
            device=_Device(*device),
            ndim=len(shape),
            type=_Type(_CODES[dtype.kind], 8 * dtype.itemsize, 1),
            shape=ctypes.cast(lengths, ctypes.POINTER(ctypes.c_int64)),
            strides=ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)),
            byte_offset=0,
        ),
        None,
        _deleter,
    )
    place = ctypes.addressof(managed)
    _lent[place] = managed, lengths, strides, owner, at_its_end
    return _new(place, _NAME, _destructor)
