"""DALL-E's masks against their definition, token by token."""

import itertools

import numpy as np
import pytest

from diffjax.nn import masks


def attends(name, query, key, height, width, kernel):
    """Returns whether a token of the grid attends to another; neighbourhoods wrap around the sides of the grid."""
    if key > query:
        return False
    if key == query or name == "full":
        return True
    if name == "row":
        return query - key <= width
    if name == "column":
        return query % width == key % width
    half = kernel // 2
    row, column = divmod(query, width)
    neighbours = {
        (row - up) * width + column + aside for up, aside in itertools.product(range(half + 1), range(-half, half + 1))
    }
    return key in neighbours


@pytest.mark.parametrize("name", masks.NAMES)
@pytest.mark.parametrize("prefix, height, width, kernel", [(3, 4, 4, 3), (1, 3, 5, 3), (6, 5, 2, 5), (0, 4, 3, 1)])
def test_masks_match_the_definition(name, prefix, height, width, kernel):
    mask = masks.sparse(name, prefix=prefix, height=height, width=width, kernel=kernel)
    assert mask.shape == (prefix + height * width,) * 2
    for row, column in itertools.product(range(len(mask)), repeat=2):
        if column < prefix or row < prefix:
            expected = column <= row
        else:
            expected = attends(name, row - prefix, column - prefix, height, width, kernel)
        assert mask[row, column] == expected, (row, column)


def test_masks_match_the_figure_of_the_paper():
    """With six text tokens and a 4x4 grid, the last token attends to five tokens of rows, or four of its column."""
    last = lambda name, **options: masks.sparse(name, prefix=6, height=4, width=4, **options)[-1]  # noqa: E731
    assert last("row").nonzero()[0].tolist() == [*range(6), 17, 18, 19, 20, 21]
    assert last("column").nonzero()[0].tolist() == [*range(6), 9, 13, 17, 21]
    assert last("convolution", kernel=3).nonzero()[0].tolist() == [*range(6), 16, 17, 18, 20, 21]


@pytest.mark.parametrize("name", masks.NAMES)
def test_masks_are_causal(name):
    assert not np.triu(masks.sparse(name, prefix=2, height=4, width=4), 1).any()


def test_invalid_options_raise():
    with pytest.raises(ValueError, match="choose from full, row, column, convolution"):
        masks.sparse("diagonal", prefix=1, height=2, width=2)
    with pytest.raises(ValueError, match="odd"):
        masks.sparse("row", prefix=1, height=2, width=2, kernel=4)
