"""Crop boxes and damaged files, by the hundred; hypothesis comes with requirements-dev.txt."""

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transforms import ROCKET

from vqvae_jax.data import image_files, transforms
from vqvae_jax.data.image_files import BadImage
from vqvae_jax.data.transforms import UNIFORMS


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=UNIFORMS, max_size=UNIFORMS),
)
def test_a_box_is_a_square_inside_the_image_of_the_share_asked_for(width, height, scale, uniforms):
    left, top, right, bottom = transforms.random_box(width, height, tuple(scale), np.array(uniforms))
    side = right - left
    assert side == bottom - top > 0
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    # Rounding moves a side by half a pixel; the fallback is the whole short side.
    low, high = (np.sqrt(share * width * height) for share in scale)
    assert low - 0.5 <= side <= high + 0.5 or side == min(width, height)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(ROCKET) - 1), st.binary(min_size=1, max_size=20))
def test_a_damaged_file_is_decoded_or_a_bad_image_and_never_anything_else(place, noise):
    data = ROCKET[:place] + noise + ROCKET[place + len(noise) :]
    try:
        image = image_files.decode(data, 3)
    except BadImage:
        return
    assert image.mode == "RGB"
