"""Gradients by central differences in float64, and the comparison of a backward with them.

`loss` is a function without arguments that reads the arrays it depends on: an element is moved in place,
the loss is asked again, the element is put back.
"""

import numpy as np

# Four points: the error of the formula is h^4/30 of the fifth derivative, so that h can be large and the
# rounding of the loss, about eps / h, small. Two points would leave 1e-11 at best, next to nothing of 1e-6.
STEP = 1e-3
RTOL = 1e-6


def numeric_gradient(loss, array, where=None):
    """d loss() / d array at the flat indices `where` (None: all of them) -> 1-D float64, and its noise."""
    assert array.dtype == np.float64, "central differences need float64"
    where = range(array.size) if where is None else where
    gradient, largest = [], 0.0
    for i in where:
        index = np.unravel_index(i, array.shape)
        kept, values = array[index], []
        for shift in (-2, -1, 1, 2):
            array[index] = kept + shift * STEP
            values.append(float(loss()))
        array[index] = kept
        gradient.append((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * STEP))
        largest = max(largest, *map(abs, values))
    # a loss of size `largest`, summed in some tens of roundings, divided by the step
    return np.array(gradient), 32 * np.finfo(np.float64).eps * largest / STEP


def assert_gradient(name, loss, array, gradient, where=None):
    """Every element of `gradient` agrees with central differences to a relative 1e-6.

    -> the largest difference, relative to the largest element.
    """
    assert gradient.shape == array.shape, f"{name}: gradient {gradient.shape} of {array.shape}"
    assert np.isfinite(gradient).all(), f"{name}: the gradient is not finite"
    numeric, noise = numeric_gradient(loss, array, where)
    analytic = gradient.reshape(-1)[list(where) if where is not None else slice(None)]
    excess = np.abs(analytic - numeric) - RTOL * np.abs(numeric) - noise
    worst = int(np.argmax(excess))
    assert excess[worst] <= 0, (
        f"{name}: element {worst} of {array.shape}: backward gives {analytic[worst]!r}, "
        f"differences give {numeric[worst]!r} (allowed: {RTOL} of it + {noise:.1e})"
    )
    assert np.abs(numeric).max() > 1e3 * noise, f"{name}: all differences are noise, nothing was checked"
    return np.abs(analytic - numeric).max() / np.abs(numeric).max()
