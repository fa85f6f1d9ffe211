"""Converts weights in FP8 or 8-bit integers to floating point."""

from torch import Tensor

Block = tuple[int | None, int]


def dequantize(
    stored: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    block: Block | None = None,
) -> Tensor:
    """Return (`stored` - `zero_point`) * `scale` in float32.

    Args:
        stored: [N, K].
        scale: One number; or one per row, [N] or [N, 1]; or one per block,
            [N / rows, K / columns] rounded up.
        zero_point: None, or a tensor of one of these shapes.
        block: Rows and columns of a block; rows None means 1.

    Returns:
        [N, K].

    Raises:
        ValueError: A tensor has a shape that is not listed above.
    """
    weight = stored.float()
    if zero_point is not None:
        weight -= _expanded(zero_point, stored, block)
    weight *= _expanded(scale, stored, block)
    return weight


def _expanded(values: Tensor, stored: Tensor, block: Block | None) -> Tensor:
    """Return `values` in float32, in a shape that broadcasts to the shape of `stored`."""
    values = values.float()
    if values.numel() == 1:
        return values.reshape(())
    num_rows, num_columns = stored.shape
    if block is not None:
        height, width = block[0] or 1, block[1]
        grid = (-(-num_rows // height), -(-num_columns // width))
        if _without_ones(values.shape) == _without_ones(grid):
            rows = values.reshape(grid).repeat_interleave(height, 0)[:num_rows]
            return rows.repeat_interleave(width, 1)[:, :num_columns]
    if tuple(values.shape) in {(num_rows,), (num_rows, 1)}:
        return values.reshape(num_rows, 1)
    raise ValueError(
        f"the shape {list(values.shape)} does not fit a weight of {list(stored.shape)}"
    )


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
