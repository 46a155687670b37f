"""Pure functions from images and random numbers to images."""

import numpy as np


def flip_where(images: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Mirror left and right those of the uint8 images [B,H,W,C] whose entry in `flips` [B] is true."""
    return np.where(flips[:, None, None, None], images[:, :, ::-1], images)
