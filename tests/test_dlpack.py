"""Arrays handed to other libraries: shared, kept while they are needed, and let go afterwards."""

import gc
import sys

import numpy as np
import pytest

import tinydilate
from tinydilate import device, dlpack, tensor


class Producer:
    """Memory of NumPy's behind our capsules."""

    def __init__(self, array, at_its_end=None):
        self.array, self.at_its_end = array, at_its_end

    def __dlpack_device__(self):
        return dlpack.CPU, 0

    def __dlpack__(self, **_):
        array = self.array
        place, on = array.ctypes.data, (dlpack.CPU, 0)
        return dlpack.capsule(place, array.shape, array.dtype, on, array, self.at_its_end)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 3)])
def test_numpy_reads_our_capsules(dtype, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    taken = np.from_dlpack(Producer(array))
    assert (taken.shape, taken.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(taken, array)
    if array.size:
        assert np.shares_memory(taken, array)


def test_an_array_is_kept_until_the_other_side_is_done():
    array = np.ones(3)
    before, held = len(dlpack._lent), sys.getrefcount(array)
    taken = np.from_dlpack(Producer(array))
    view = taken[1:]
    del taken
    gc.collect()
    assert len(dlpack._lent) == before + 1
    assert sys.getrefcount(array) > held
    assert view.tolist() == [1, 1]
    del view
    gc.collect()
    assert len(dlpack._lent) == before
    assert sys.getrefcount(array) == held


def test_what_is_done_at_the_end_comes_before_the_memory_goes():
    there = []
    taken = np.from_dlpack(Producer(np.ones(3), lambda: there.append(len(dlpack._lent))))
    gc.collect()
    before = len(dlpack._lent)
    assert not there
    del taken
    gc.collect()
    assert there == [before], "while it was still kept"
    assert len(dlpack._lent) == before - 1


def test_a_capsule_that_nobody_takes_lets_go():
    before = len(dlpack._lent)
    capsule = Producer(np.ones(3)).__dlpack__()
    assert len(dlpack._lent) == before + 1
    del capsule
    gc.collect()
    assert len(dlpack._lent) == before


def test_a_tensor_on_the_cpu_is_handed_over_by_numpy():
    x = tensor(np.arange(3.0))
    assert np.shares_memory(np.from_dlpack(x), x.data)
    leaf = tensor(np.arange(3.0), requires_grad=True)
    with pytest.raises(BufferError, match=r"requires grad, .* Hand over \.detach\(\)\.$"):
        np.from_dlpack(leaf)
    assert np.shares_memory(np.from_dlpack(leaf.detach()), leaf.data)
    shape_only = tensor(device.MetaArray((2, 3)))
    with pytest.raises(BufferError, match="got one on meta"):
        shape_only.__dlpack__()


@pytest.mark.gpu
def test_an_array_on_the_gpu_is_shared():
    x = tensor(np.arange(6, dtype=np.float32).reshape(2, 3), device="cuda")
    taken = from_dlpack(x)
    device.write(np.full((2, 3), 7, np.float32), x.data)
    device.synchronize()
    assert taken.tolist() == [[7.0] * 3] * 2
    if not device.SIMULATED:
        assert device._address(tensor(taken).data.flat) == taken.data_ptr()
    with pytest.raises(BufferError, match=r"on cuda; got device \(99, 0\)\. Move them with \.to"):
        x.data.__dlpack__(dl_device=(99, 0))
    assert x.data.__dlpack_device__()[1] == 0
    copied = x.data.__dlpack__(copy=True, stream=2)
    assert copied is not None
    statistics = tinydilate.device.cuda_statistics().in_use
    del taken, copied
    gc.collect()
    assert device.cuda_statistics().in_use < statistics, "the copy is gone"


def from_dlpack(x):
    if device.SIMULATED:
        return np.from_dlpack(x)
    torch = pytest.importorskip("torch")
    return torch.from_dlpack(x)
