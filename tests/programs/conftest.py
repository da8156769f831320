import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_end(without_pictures):
    """`pictures_drawn` is for tests that ask about them."""
