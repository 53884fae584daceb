"""A solution of exercise 3."""

Range = tuple[int, int]


def unpadded(size: tuple[int, int], patches: tuple[int, int]) -> tuple[Range, Range]:
    (width, height), (rows, columns) = size, patches
    if width * rows > columns * height:  # wider than the grid
        kept = height * columns // width
        border = (rows - kept) // 2
        return (border, rows - border), (0, columns)
    kept = width * rows // height
    border = (columns - kept) // 2
    return (0, rows), (border, columns - border)
