"""The emulated GPU: bugs that are planted in kernels are compiled with them, and noticed."""

import pytest
from emulated_gpu import WANTED
from mutants import GPU_PAGE_MUTANTS, planted
from test_mutants import fails, killer_on_the_gpu

from tinydilate.launching import CUDA_KERNELS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not WANTED, reason="a bug in the bounds would stop a real GPU for good"),
]
NAMES = [
    "scores beyond the last class asked for",
    "a part of a sum goes on into the next",
    "numbers added in pairs before they are all there",
    "blocks counted from where the launch before had ended",
    "a step goes one number beyond the end of a piece",
]


def forget_what_is_loaded():
    for kernel in CUDA_KERNELS:
        kernel._launchers.clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_bug_is_noticed(name):
    (mutant,) = [mutant for mutant in GPU_PAGE_MUTANTS if mutant.name == name]
    killer = killer_on_the_gpu(mutant, examples=3)
    killer()
    forget_what_is_loaded()
    with planted(mutant):
        assert fails(killer)
    forget_what_is_loaded()
    killer()
