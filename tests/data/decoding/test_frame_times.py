from fractions import Fraction

import numpy as np
import pytest

from vidtrain.data.decoding.container import StatedTimes, frame_times

TICK, RATE = Fraction(1, 30), Fraction(25)
NONE = [None]


def seconds(shown: list, let_out: list, sent: list, rate: Fraction | None = RATE) -> list[float]:
    ticks, tick = frame_times(StatedTimes(shown, let_out, sent), TICK, rate)
    assert ticks.dtype == np.int64 and (np.diff(ticks) > 0).all()
    return (ticks * float(tick) / float(TICK)).round(2).tolist()


@pytest.mark.parametrize(
    ("shown", "let_out", "sent", "expected"),
    [
        # all there and in order: as they are, whatever the decode times say
        ([3, 4, 9], [1, 2, None], [0, 1, 2], [3, 4, 9]),
        # a guess out of order: decode times, here with 2 pictures held back and one interval of two
        ([1, 3, 4, 2, 7], [2, 3, 4, None, None], [0, 1, 2, 3, 5], [0, 1, 3, 4, 5]),
        ([1, 3, 4, 2, 6, 7], [2, 3, 5, 6, None, None], [0, 1, 2, 3, 5, 6], [0, 1, 3, 4, 5, 6]),
        # more packets than frames: the times of those upon which frames came out
        ([None, None, None], [2, 4, None], [0, 1, 2, 3, 4, 5], [0, 2, 4]),
        # some are missing and no decode times: evenly between the others, and on behind them
        ([10, None, 12, 13, None, None], NONE * 6, NONE * 6, [10, 11, 12, 13, 14, 15]),
        ([None, 11, 12, 12, 14, 3, 16], NONE * 7, NONE * 7, [10, 11, 12, 13, 14, 15, 16]),
        ([0, 1, 1, 2, 3], NONE * 5, NONE * 5, [0, 1, 1.5, 2, 3]),
        # hardly any, or none: by the rate, 25 to ticks of 30
        ([5, None, None, None], NONE * 4, NONE * 4, [0, 1.2, 2.4, 3.6]),
        (NONE * 3, NONE * 3, NONE * 3, [0, 1.2, 2.4]),
        # frames that all come out at the end
        ([1, 0], NONE * 2, [0, 2], [0, 2]),
    ],
)
def test_times(shown, let_out, sent, expected):
    assert seconds(shown, let_out, sent) == expected


def test_neither_times_nor_a_rate():
    assert frame_times(StatedTimes([None, None], [None, None], [None, None]), TICK, None) is None
    assert seconds([0, 1], [0, 1], [0, 1], None) == [0, 1]
