"""The paper's networks, written as the paper's tables.

Read front_ends (section 4), then contexts (section 3, Table 1), whole, published and comparisons.
"""

from tinydilate.models.comparisons import (
    DEEPLAB_LARGE_FOV,
    FCN,
    SMALL_LARGE_FOV,
    SMALL_POOLED,
    SMALL_STRIDED,
    VGG_16_FCN,
    VGG_16_POOLED,
    VGG_16_STRIDED,
    deeplab_large_fov,
    fcn_8s,
    pooled_front_end,
    small_fcn,
    small_large_fov,
    small_pooled_front_end,
)
from tinydilate.models.contexts import (
    DILATIONS,
    DILATIONS_7,
    DILATIONS_10,
    bilinear_upsampling,
    context,
    context_rows,
)
from tinydilate.models.front_ends import SMALL, VGG_16, front_end, small_front_end
from tinydilate.models.published import (
    PUBLISHED,
    Published,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from tinydilate.models.rows import Average, Conv, Drop, Pool, Row
from tinydilate.models.whole import FrontEndWithContext

__all__ = [
    "DEEPLAB_LARGE_FOV",
    "DILATIONS",
    "DILATIONS_7",
    "DILATIONS_10",
    "FCN",
    "PUBLISHED",
    "SMALL",
    "SMALL_LARGE_FOV",
    "SMALL_POOLED",
    "SMALL_STRIDED",
    "VGG_16",
    "VGG_16_FCN",
    "VGG_16_POOLED",
    "VGG_16_STRIDED",
    "Average",
    "Conv",
    "Drop",
    "FrontEndWithContext",
    "Pool",
    "Published",
    "Row",
    "bilinear_upsampling",
    "context",
    "context_rows",
    "deeplab_large_fov",
    "dilation7_kitti",
    "dilation8_camvid",
    "dilation8_voc",
    "dilation10_cityscapes",
    "fcn_8s",
    "front_end",
    "pooled_front_end",
    "small_fcn",
    "small_front_end",
    "small_large_fov",
    "small_pooled_front_end",
]
