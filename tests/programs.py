"""The programs beside the package, as modules."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(folder, name):
    spec = spec_from_file_location(f"{folder}_{name}", ROOT / folder / f"{name}.py")
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / folder))
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module
