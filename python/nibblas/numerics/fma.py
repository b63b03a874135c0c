# SPDX-License-Identifier: Apache-2.0
"""The fused multiply-add that NumPy lacks.

Every product of the numerics goes through it, as every product of the native kernels goes through
the instruction or through the same few lines on targets that have none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_ONE = np.int64(1)


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
    """Return ``a * b + c`` rounded once to float32, nearest even, as the IEEE 754 operation.

    Parameters
    ----------
    a, b, c : float32 array_like
        Arrays or NumPy scalars of float32, which broadcast; or Python numbers, which are rounded to
        float32 first.

    Returns
    -------
    float32 ndarray
        Of the broadcast shape, with the signs of zero, infinities and subnormals of the hardware
        instruction. Which NaN a NaN is, is not specified.

    Raises
    ------
    TypeError
        If an array is not float32.

    Notes
    -----
    The product of two float32 has 48 bits and is exact in float64, but the sum with `c` is not, and
    rounding it twice, to 53 bits and then to 24, errs where the first rounding makes a tie. So the
    sum is rounded to odd: if it is inexact and its last bit is even, it moves to the neighbour on
    the side of what was lost, which is odd. An odd last bit says "not exact, and not a tie", and
    with 53 >= 24 + 2 bits the second rounding then sees all it needs, in the subnormal range too,
    where it keeps even fewer bits. See S. Boldo and G. Melquiond, "Emulation of a FMA and
    correctly rounded sums: proved algorithms using rounding to odd", IEEE Transactions on
    Computers 57 (2008).

    Neither the float64 product (at least 2**-298) nor the sum (below 2**257) leaves the range of
    normal float64, so TwoSum gives the lost part exactly.

    Examples
    --------
    >>> x = np.float32(1 + 2**-23)
    >>> float(fma(x, x, -x * x)) == 2**-46
    True
    """
    with np.errstate(all="ignore"):  # a signaling NaN sets a flag when it is merely converted
        a64, b64, c64 = _float64(a, "a"), _float64(b, "b"), _float64(c, "c")
        product = a64 * b64
        total = np.asarray(product + c64)
        # TwoSum: product + c64 = total + lost. NaN where total is not finite; every comparison with
        # it is false, so such a total stays as it is.
        back = total - product
        lost = (product - (total - back)) + (c64 - back)
        bits = total.view(np.int64)
        inexact = (lost > 0) | (lost < 0)
        away_from_zero = (lost > 0) == (total > 0)
        step = np.where(away_from_zero, _ONE, -_ONE)
        odd = np.where(inexact & ((bits & _ONE) == 0), bits + step, bits)
        return odd.view(np.float64).astype(np.float32)


def _float64(value: ArrayLike, name: str) -> np.ndarray:
    is_python_number = type(value) in (int, float)  # and not float64, which is a float, too
    array = np.asarray(value, np.float32 if is_python_number else None)
    if array.dtype != np.float32:
        raise TypeError(f"{name} must be float32, not {array.dtype}")
    return array.astype(np.float64)
