"""Random numbers that belong to a view: a stream for each thing that is drawn on the device.

Every view comes with an int64 seed of its own. What is drawn for it depends on that seed alone, so neither on the
batch that it came in, nor on the number of ranks, nor on any global generator.
"""

import numpy as np

# Color jitter has the seed's own stream. No tag is 0, for SeedSequence takes [seed, 0] as it takes seed.
TAGS = {"rand_augment": 1, "erasing": 2}


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The view's random numbers for one of `TAGS`; streams of one seed are independent of each other."""
    return np.random.default_rng([seed, TAGS[purpose]])
