"""The rule of hybrid dilated convolution: a rule of thumb for stacks without holes.

    P. Wang et al., Understanding convolution for semantic segmentation, WACV 2018, section 3.2

It looks at the largest gap between pixels that a stack of dilations r_1 .. r_n leaves when its
layers are undone from the last to the first,

    M_n = r_n,    M_i = max(M_{i+1} - 2 r_i, 2 r_i - M_{i+1}, r_i),

and asks that M_2 be at most the kernel's size K. It is quick, and it errs both ways: it rejects
stacks that see every pixel, and where the first dilation is more than 1 it lets stacks with holes
pass. (Beside the formula the paper asks that the dilations share no factor. That catches 2, 2, 2;
2, 3 passes all the same, and sees 81 of 121 pixels.) The exact set (`tinydilate.field.line_of`) is
the truth, and does not depend on the order of the layers; the rule does.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinydilate.errors import ConfigError


def largest_gap(dilations: Sequence[int]) -> int:
    """M_2 of a stack of at least two layers.

    Raises
    ------
    ConfigError
        If there are fewer layers: then the rule says nothing.

    Examples
    --------
    >>> largest_gap((1, 2, 5)), largest_gap((1, 2, 9)), largest_gap((2, 2, 2))
    (2, 5, 2)
    """
    if len(dilations) < 2:
        raise ConfigError(
            "expected the dilations of at least two layers, for the rule looks at what the second "
            f"leaves; got {tuple(dilations)}. One layer of dilation d leaves d - 1 holes in a row."
        )
    gap = dilations[-1]
    for dilation in reversed(dilations[1:-1]):
        gap = max(gap - 2 * dilation, 2 * dilation - gap, dilation)
    return gap
