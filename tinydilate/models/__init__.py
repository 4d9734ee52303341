"""The paper's networks, written as the paper's tables.

Read front_ends (section 4), then contexts (section 3, Table 1), then whole, published and plans.
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
from tinydilate.models.plans import Plan, plan_of_note, plan_of_published
from tinydilate.models.published import (
    PUBLISHED,
    Published,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from tinydilate.models.rows import Conv, Drop, Pool, Row
from tinydilate.models.whole import FrontEndWithContext

__all__ = [
    "DILATIONS",
    "DILATIONS_7",
    "DILATIONS_10",
    "PUBLISHED",
    "SMALL",
    "VGG_16",
    "Conv",
    "Drop",
    "FrontEndWithContext",
    "Plan",
    "Pool",
    "Published",
    "Row",
    "bilinear_upsampling",
    "context",
    "context_rows",
    "dilation7_kitti",
    "dilation8_camvid",
    "dilation8_voc",
    "dilation10_cityscapes",
    "front_end",
    "plan_of_note",
    "plan_of_published",
    "small_front_end",
]
