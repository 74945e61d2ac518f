"""Image grids of a prompt: which tokens stand for which part of which image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glm4v_magic.checkpoints.encoding import EncodedImage
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.wording import brief
from glm4v_magic.inspect.labelled import Labelled

__all__ = ["ImageGrid", "ImageMap", "PixelBox", "TokenMap", "box_of", "grid_of", "require_grid"]

PixelBox = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the original image."""


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """An image of a prompt and the visual tokens of its patches.

    Attributes:
        image: the image; of two frames of a video that share their tokens, the first.
        start: index in the prompt of the token of its first patch.
        rows: rows of tokens.
        columns: columns of tokens.
    """

    image: SourcedImage
    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        """Index past the token of its last patch."""
        return self.start + self.rows * self.columns

    @property
    def positions(self) -> slice:
        """Positions of its patches among the tokens of the prompt."""
        return slice(self.start, self.stop)

    def box(self, row: int, column: int) -> PixelBox:
        """Return the part of the original image that a visual token was made from.

        Attention within the vision tower has mixed all patches; the box says where the token's own
        patch is.
        """
        return box_of(self.image, (self.rows, self.columns), row, column)

    def place(self, position: int) -> tuple[int, int]:
        """Return row and column of the token at an index of the prompt."""
        return divmod(position - self.start, self.columns)


def grid_of(image: EncodedImage) -> ImageGrid:
    """Return the grid of an image of a prompt."""
    offset, rows, columns = image.cells
    return ImageGrid(image.image, image.start + offset, rows, columns)


def box_of(image: SourcedImage, cells: tuple[int, int], row: int, column: int) -> PixelBox:
    """Return a cell of a grid of equal parts over an image.

    Raises:
        OptionError: if there is no such row or column.
    """
    rows, columns = cells
    if not (0 <= row < rows and 0 <= column < columns):
        raise OptionError(f"There is no row {row}, column {column} in a grid of {rows}x{columns}.")
    width, height = image.original_size
    return (
        column * width / columns,
        row * height / rows,
        (column + 1) * width / columns,
        (row + 1) * height / rows,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ImageMap:
    """Values over an image.

    Attributes:
        image: the image.
        values: the values; the last two axes are ``row`` and ``column``.
    """

    image: SourcedImage
    values: Labelled

    def box(self, row: int, column: int) -> PixelBox:
        """Return the part of the original image that a value is about, in pixels.

        Raises:
            OptionError: if there is no such row or column.
        """
        rows, columns = self.values.values.shape[-2:]
        return box_of(self.image, (rows, columns), row, column)


@dataclass(frozen=True, slots=True, eq=False)
class TokenMap:
    """Values for each token that precedes a token of an answer.

    Attributes:
        values: the values; the last axis is ``position``, an index of prompt and answer.
        grids: images of the prompt.
    """

    values: Labelled
    grids: tuple[ImageGrid, ...]

    def on_image(self, image: int = 0) -> ImageMap:
        """Return the values over the patches of an image of the prompt.

        Raises:
            OptionError: if there is no such image.
        """
        grid = require_grid(self.grids, image)
        every = self.values
        part = every.values[..., grid.start : grid.stop]
        shaped = part.reshape(*part.shape[:-1], grid.rows, grid.columns)
        coords = {dim: labels for dim, labels in every.coords.items() if dim != "position"}
        values = Labelled(shaped, (*every.dims[:-1], "row", "column"), coords, every.name)
        return ImageMap(grid.image, values)

    def on_text(self) -> Labelled:
        """Return the values over all other tokens, by their positions."""
        every = self.values
        visual = {at for grid in self.grids for at in range(grid.start, grid.stop)}
        text = [at for at in range(every.values.shape[-1]) if at not in visual]
        return Labelled(
            every.values[..., text], every.dims, {**every.coords, "position": text}, every.name
        )


def require_grid(grids: Sequence[ImageGrid], image: int) -> ImageGrid:
    """Return the grid of an image.

    Raises:
        OptionError: if there is no such image.
    """
    if not isinstance(image, int) or not 0 <= image < len(grids):
        raise OptionError(f"There is no image {brief(image)}: {_counted(len(grids))}.")
    return grids[image]


def _counted(count: int) -> str:
    return f"the prompt has {count}, numbered from 0" if count else "the prompt has none"
