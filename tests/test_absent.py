"""Names of PyTorch's that are not here: whoever asks is told what to write."""

import copy

import numpy as np
import pytest

import tinydilate as td
from tinydilate import absent, nn, optim, tensor
from tinydilate import functional as F
from tinydilate.errors import MissingNameError

X = tensor(np.zeros((2, 3), np.float32))
ASKED = {
    "a tensor": X,
    "a module": nn.ReLU(),
    "tinydilate": td,
    "tinydilate.functional": F,
    "tinydilate.nn": nn,
    "tinydilate.optim": optim,
}
NAMES = [(owner, name) for owner, table in absent.TABLES.items() for name in table]


@pytest.mark.parametrize(("owner", "name"), NAMES)
def test_the_error_says_what_to_write(owner, name):
    with pytest.raises(MissingNameError) as caught:
        getattr(ASKED[owner], name)
    instead, said = absent.TABLES[owner][name], str(caught.value)
    assert said.startswith(f"expected a name that {owner} has; got {name!r}, which is PyTorch's")
    assert said.endswith(instead)


@pytest.mark.parametrize("owner", ASKED)
def test_a_name_that_nobody_has(owner):
    assert not hasattr(ASKED[owner], "nobody_has_this")
    with pytest.raises(MissingNameError, match=f"^expected a name that {owner} has; got 'nobody_h"):
        ASKED[owner].nobody_has_this  # noqa: B018
    assert not hasattr(ASKED[owner], "__cuda_array_interface__")


@pytest.mark.parametrize(
    ("ask", "end"),
    [
        (lambda: X.shap, "Did you mean shape?"),
        (lambda: nn.Conv2D, "Did you mean Conv2d?"),
        (lambda: nn.Linear(2, 3).weigth, "Did you mean weight?"),
        (lambda: F.conv2, "Did you mean conv2d?"),
        (lambda: td.manual_sed, "Did you mean manual_seed?"),
        (lambda: optim.Adma, "Did you mean Adam?"),
        (lambda: td.exporting, "It is a module: import tinydilate.exporting"),
        (lambda: X.clamp_(0), "a leaf's numbers are in .data."),
    ],
)
def test_the_way_is_shown(monkeypatch, ask, end):
    monkeypatch.delattr(td, "exporting", raising=False)  # whoever has imported it before
    with pytest.raises(MissingNameError) as caught:
        ask()
    assert str(caught.value).endswith(end)


def test_what_is_half_made_asks_itself_for_nothing():
    """A copy is made before it has any attribute."""
    assert copy.deepcopy(X).data.tolist() == X.data.tolist()
    assert copy.deepcopy(nn.Linear(2, 3)).weight.shape == (3, 2)
    with pytest.raises(AttributeError, match="data"):
        object.__new__(type(X)).data  # noqa: B018


def test_a_property_that_misses_something_says_what():
    class Wide(nn.Module):
        def __init__(self):
            self.conv = nn.Conv2d(1, 1, 3)

        @property
        def width(self):
            return self.conv.weigth.shape[0]

        def forward(self, x):
            return x

    with pytest.raises(MissingNameError, match=r"got 'weigth'\. Did you mean weight\?$"):
        Wide().width  # noqa: B018


def test_an_import_is_answered_by_python():
    """It swallows what a module says to it; the page says so."""
    with pytest.raises(
        ImportError, match=r"^cannot import name 'BatchNorm2d' from 'tinydilate\.nn'"
    ):
        from tinydilate.nn import BatchNorm2d  # noqa: F401
