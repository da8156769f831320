"""Masks: what they hide, what they follow from, how often; figures of the originals over 10,000 draws of theirs."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from vidtrain.errors import UserError
from vidtrain.models.masks import BlockMasks, Masks, TubeMasks, masks_of

GRID = (2, 14, 14)


def frames(masks: Masks, grid=GRID) -> np.ndarray:
    """What is hidden, bool [b t h w], from the places of hidden tokens alone."""
    hidden = np.zeros((len(masks.hidden), np.prod(grid)), dtype=bool)
    for row in range(len(hidden)):
        valid = slice(None) if masks.hidden_valid is None else masks.hidden_valid[row].numpy()
        hidden[row, masks.hidden[row].numpy()[valid]] = True
    return hidden.reshape(-1, *grid)


@pytest.mark.parametrize("sampler", [TubeMasks(), TubeMasks(0.75), BlockMasks(), BlockMasks(blocks=[1], areas=[0.5])])
def test_each_token_is_either_visible_or_hidden_at_all_times(sampler):
    kinds = sampler(GRID, range(20))
    assert len(kinds) == sampler.kinds
    for masks in kinds:
        hidden = frames(masks).reshape(20, -1)
        for row in range(20):
            valid = slice(None) if masks.visible_valid is None else masks.visible_valid[row]
            visible = masks.visible[row][valid].tolist()
            assert visible == np.flatnonzero(~hidden[row]).tolist() != []
        assert (frames(masks)[:, 0] == frames(masks)[:, 1]).all()


def test_places_rise_and_are_padded_with_zero():
    masks = masks_of(np.array([[0, 1, 1, 0, 0], [1, 1, 1, 0, 1]], dtype=bool))
    assert masks.visible.tolist() == [[0, 3, 4], [3, 0, 0]]
    assert masks.hidden.tolist() == [[1, 2, 0, 0], [0, 1, 2, 4]]
    assert masks.visible_valid.tolist() == [[True, True, True], [True, False, False]]
    assert masks.hidden_valid.tolist() == [[True, True, False, False], [True] * 4]
    assert [(rows.tolist(), longest) for rows, longest in masks.groups] == [([1], 1), ([0], 3)]
    assert masks.visible.dtype == masks.hidden.dtype == torch.int64
    equal = masks_of(np.array([[0, 1], [1, 0]], dtype=bool))
    assert equal[2:] == (None, None, None)


def test_a_mean_is_over_hidden_tokens_and_their_values_find_their_places():
    masks = masks_of(np.array([[0, 1, 1, 0], [0, 1, 0, 0]], dtype=bool))
    values = torch.tensor([[1.0, 3.0], [5.0, 100.0]])
    assert masks.mean_of_hidden(values).tolist() == [2.0, 5.0]
    assert masks.put_hidden(values[..., None], torch.zeros(2, 4, 1))[..., 0].tolist() == [
        [0, 1, 3, 0],
        [0, 5, 0, 0],
    ]
    values = torch.tensor([[1.0, 3.0, 0.0], [5.0, 6.0, 7.0]])
    put = masks.put_visible(values[..., None], torch.zeros(2, 4, 1))[..., 0]
    assert put.tolist() == [[1, 0, 0, 3], [5, 0, 6, 7]]
    assert masks_of(np.array([[0, 1, 1]], dtype=bool)).mean_of_hidden(values[:1, :2]).tolist() == [2.0]


@pytest.mark.parametrize("sampler", [TubeMasks(), BlockMasks()])
def test_a_row_follows_from_its_seed_whatever_the_batch(sampler):
    together = sampler(GRID, [5, 2**62 + 3, 7])
    alone = sampler(GRID, [7])
    for kind, masks in enumerate(together):
        assert (frames(masks)[2] == frames(alone[kind])[0]).all()
        assert not (frames(masks)[0] == frames(masks)[1]).all()
    again = sampler(GRID, [5, 2**62 + 3, 7])
    assert all(
        torch.equal(x, y) for a, b in zip(together, again, strict=True) for x, y in zip(a[:2], b[:2], strict=True)
    )


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 176), (0.75, 147), (0.95, 186)])
def test_tubes_hide_as_many_places_as_the_original_each_equally_often(ratio, hidden):
    masks = TubeMasks(ratio)((1, 14, 14), range(2000))[0]
    assert masks.hidden.shape == (2000, hidden) and masks.hidden_valid is None
    often = frames(masks, (1, 14, 14)).sum(axis=0).ravel()
    # a chi-square with 195 degrees of freedom; without replacement its mean is 196 (1 - ratio)
    deviation = ((often - 2000 * hidden / 196) ** 2 / (2000 * hidden / 196)).sum() / (1 - hidden / 196)
    assert 130 < deviation < 270


# 10,000 draws of facebookresearch/vjepa2 c2963a4 on 14x14 places: how often less than so many of them are hidden, and
# how often the middle, a corner, the middle of the upper edge and of the left edge are.
ORIGINAL = {
    0: (
        [104, 111, 116, 120, 124, 128, 132, 137, 143],
        [1010, 1022, 1020, 995, 1006, 1054, 1006, 1040, 879, 968],
        [0.9493, 0.0878, 0.3730, 0.3999],
    ),
    1: (
        [141, 144, 155, 157, 166, 169, 170, 179],
        [1102, 900, 2354, 1149, 756, 1378, 488, 916, 957],
        [1.0, 0.2181, 0.6650, 0.4757],
    ),
}


@pytest.mark.slow
def test_blocks_hide_what_those_of_the_original_hide():
    for kind, masks in enumerate(BlockMasks()(GRID, range(10000))):
        hidden = frames(masks)[:, 0]
        edges, counts, shares = ORIGINAL[kind]
        ours = np.histogram(hidden.sum(axis=(1, 2)), bins=[0, *edges, 1000])[0]
        assert chi2_contingency([ours, counts]).pvalue > 0.01
        often = [hidden[:, row, column].mean() for row, column in ((7, 7), (0, 0), (0, 7), (7, 0))]
        # four deviations of a difference of two shares of 10,000
        assert often == pytest.approx(shares, abs=4 * np.sqrt(2 * 0.25 / 10000))


def test_a_block_has_the_size_of_the_formula():
    blocks = BlockMasks()
    assert [blocks.size(0.15, aspect, 16, 16) for aspect in (0.75, 1.0, 1.5)] == [(5, 7), (6, 6), (8, 5)]
    assert [blocks.size(0.7, aspect, 16, 16) for aspect in (0.75, 1.0, 1.5)] == [(12, 15), (13, 13), (16, 11)]
    sizes = {
        tuple(frame.any(axis=axis).sum() for axis in (1, 0))
        for frame in frames(BlockMasks([1], [0.15])(GRID, range(500))[0])[:, 0]
    }
    assert sizes == {(5, 6), (5, 5), (6, 5), (6, 4), (7, 4)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TubeMasks(1.0), r"objective\.masks\.ratio=1\.0 must lie between 0 and 1"),
        (lambda: TubeMasks(0.0), r"objective\.masks\.ratio=0\.0 must lie between 0 and 1"),
        (
            lambda: TubeMasks(0.2).check((8, 2, 2)),
            r"objective\.masks\.ratio=0\.2 hides none of the 2x2 places",
        ),
        (
            lambda: BlockMasks([8], [0.15, 0.7]),
            r"blocks=\[8\] and objective\.masks\.areas=\[0\.15, 0\.7\] must be equally",
        ),
        (lambda: BlockMasks([0], [0.5]), r"objective\.masks\.blocks=\[0\]: every kind needs 1 block"),
        (lambda: BlockMasks([1], [1.0]), r"objective\.masks\.areas=\[1\.0\]: each must lie between 0 and 1"),
        (
            lambda: BlockMasks(aspect=[1.5, 0.75]),
            r"objective\.masks\.aspect=\[1\.5, 0\.75\] must be two numbers",
        ),
        (lambda: BlockMasks().check((8, 2, 2)), r"a block of 0\.15 of 2x2 places is empty; raise it"),
        (
            lambda: BlockMasks([200], [0.7]).check(GRID),
            r"200 blocks of 0\.7 hide all 14x14 places of a frame, and leave",
        ),
        (lambda: BlockMasks([1], [0.99], [1, 1]).check((8, 4, 4)), r"1 blocks of 0\.99 hide all 4x4 places"),
    ],
)
def test_masks_that_hide_nothing_or_all(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("grid", [GRID, (8, 4, 4), (1, 6, 10), (2, 3, 3)])
def test_usual_masks_fit_usual_grids(grid):
    TubeMasks().check(grid)
    BlockMasks().check(grid)
