"""The order in which the patches of a grid follow one another.

Raster order jumps from the end of a row to the beginning of the next, and what lies one above the other is a whole row
apart. A Hilbert curve goes from neighbour to neighbour, and any stretch of it covers a compact blob: what comes soon
after one another lies close together. Hilbert's own needs a square whose side is a power of two; this one, generalised
as in "gilbert" (Červený, https://github.com/jakubcerveny/gilbert), takes any rectangle.
"""

from __future__ import annotations

from collections.abc import Iterator


def raster(rows: int, columns: int) -> list[int]:
    """Row by row: cell `(r, c)` is number `r * columns + c`, here and below."""
    return list(range(rows * columns))


def hilbert(rows: int, columns: int) -> list[int]:
    """All cells, each a side's neighbour of the one before, from the upper left to another corner.

    It runs along the longer side. Where that is odd and the other even there is no such path (cells are black and white
    as on a chessboard, both corners have one colour, and a path through an even number of cells ends on the other), so
    it runs along the shorter.
    """
    along_columns = columns >= rows
    if max(rows, columns) % 2 == 1 and min(rows, columns) % 2 == 0:
        along_columns = not along_columns
    right, down = 1, columns
    return list(_walk(0, right, columns, down, rows) if along_columns else _walk(0, down, rows, right, columns))


CURVES = {"raster": raster, "hilbert": hilbert}


def _walk(at: int, along: int, length: int, across: int, width: int) -> Iterator[int]:
    """A rectangle from the cell `at` to the cell `length - 1` steps `along`; steps are differences of cell numbers."""
    if width == 1:
        yield from (at + i * along for i in range(length))
    elif length == 1:
        yield from (at + i * across for i in range(width))
    elif 2 * length > 3 * width:  # long: one half, then the other
        half = _even_half(length)
        yield from _walk(at, along, half, across, width)
        yield from _walk(at + half * along, along, length - half, across, width)
    else:  # to the middle, along, and back to the near side
        half, middle = length // 2, _even_half(width)
        yield from _walk(at, across, middle, along, half)
        yield from _walk(at + middle * across, along, length, across, width - middle)
        end = at + (length - 1) * along + (middle - 1) * across
        yield from _walk(end, -across, middle, -along, length - half)


def _even_half(size: int) -> int:
    """Even, so that a walk over it can end beside where it began."""
    half = size // 2
    return half + 1 if half % 2 and size > 2 else half
