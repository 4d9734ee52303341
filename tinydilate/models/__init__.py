"""The paper's networks, written as the paper's tables.

Read front_ends (section 4), then contexts (section 3, Table 1), then whole.
"""

from tinydilate.models.contexts import (
    DILATIONS,
    DILATIONS_7,
    DILATIONS_10,
    bilinear_upsampling,
    context,
    context_rows,
)
from tinydilate.models.front_ends import SMALL, VGG_16, front_end, small_front_end
from tinydilate.models.rows import Conv, Drop, Pool, Row
from tinydilate.models.whole import FrontEndWithContext

__all__ = [
    "DILATIONS",
    "DILATIONS_7",
    "DILATIONS_10",
    "SMALL",
    "VGG_16",
    "Conv",
    "Drop",
    "FrontEndWithContext",
    "Pool",
    "Row",
    "bilinear_upsampling",
    "context",
    "context_rows",
    "front_end",
    "small_front_end",
]
