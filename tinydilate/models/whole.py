"""Front end, context module and upsampling as one network, from an image to scores per pixel."""

from __future__ import annotations

from typing import Any

from tinydilate import functional as F
from tinydilate import nn
from tinydilate.autograd import Tensor
from tinydilate.errors import ShapeError
from tinydilate.field import field_of
from tinydilate.models.rows import readers_of, stride_of


class FromCorners(nn.Module):
    """Bilinear enlarging that puts cell i at pixel S*i: n cells give S*(n-1) + 1 pixels."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def forward(self, scores: Any) -> Tensor:
        size = tuple(self.stride * (cells - 1) + 1 for cells in scores.shape[-2:])
        return F.interpolate(  # type: ignore[no-any-return]
            scores, size, mode="bilinear", align_corners=True
        )

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class FrontEndWithContext(nn.Module):
    """An image in, class scores for each of its pixels out.

    Cell i of the coarse maps is centred at pixel S*i + (S-1)/2 of the image, for a stride of S.
    Bilinear interpolation without aligned corners puts it there too, so the scores are enlarged
    exactly S times and then cut to the image's size. (Stretching them to a size that S does not
    divide would move them.)

    A front end whose windows have a centre, such as `deeplab_large_fov` with its 3x3 poolings, has
    cell i at pixel S*i. Its scores are interpolated with aligned corners: n cells give
    S*(n-1) + 1 pixels.

    Parameters
    ----------
    front_end : nn.Sequential
        With its border; see `front_end`.
    context : nn.Module, optional
        See `context`; without one, the front end alone.
    upsample : bool
        Whether to return scores for each pixel (N, C, H, W), or the coarse ones (N, C, h, w).

    Attributes
    ----------
    front_end, context, enlarge : modules
        ``context`` may be None.
    stride : int
        S, image pixels from one cell to the next.
    upsample : bool
    """

    def __init__(
        self, front_end: nn.Sequential, context: nn.Module | None = None, upsample: bool = True
    ) -> None:
        self.front_end = front_end
        self.context = context
        self.upsample = upsample
        self.stride = stride_of(front_end)
        at_corner = field_of(readers_of(front_end)).centre == 0 and self.stride > 1
        self.enlarge = (
            FromCorners(self.stride)
            if at_corner
            else nn.Upsample(scale_factor=self.stride, mode="bilinear")
        )

    def forward(self, image: Any) -> Tensor:
        scores = self.front_end(image)  # (N, C, h, w)
        if self.context is not None:
            scores = self.context(scores)  # (N, C, h, w)
        return self.to_pixels(scores, image.shape[-2:]) if self.upsample else scores

    def to_pixels(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, C, h, w) scores of cells -> (N, C, H, W) scores of an image's pixels.

        Raises
        ------
        ShapeError
            If the cells do not cover the image.
        """
        height, width = size
        enlarged = self.enlarge(scores)  # (N, C, S*h, S*w), or a corner's S*(h-1) + 1
        if enlarged.shape[-2] < height or enlarged.shape[-1] < width:
            raise ShapeError(
                f"expected cells that cover the image of {height} x {width} pixels; got "
                f"{scores.shape[-2]} x {scores.shape[-1]} of {self.stride} pixels each. Build the "
                "front end with border=True and ceil_mode=True, or pass upsample=False."
            )
        if enlarged.shape[-2:] == (height, width):
            return enlarged  # type: ignore[no-any-return]
        return enlarged[..., :height, :width]  # type: ignore[no-any-return]
