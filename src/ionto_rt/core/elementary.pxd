"""exp, log, cosine, sine, rounding and small systems of equations from + - * / and square root alone.

The C library's versions round differently between processors; a replay of the tick must not. Accuracy is a few units
in the last place, for exp ten times 1 + |x|: enough for tones, poles and time constants.
"""
from libc.math cimport sqrt
from libc.stdint cimport int32_t, uint32_t

cdef inline double exact_exp(double x) noexcept nogil:
    """exp(x) for |x| <= 700: Taylor series of x / 1024, squared ten times."""
    cdef double r, total, term
    cdef int32_t k, _k
    if x < 0.0:
        return 1.0 / exact_exp(-x) if x >= -700.0 else 0.0
    if x > 700.0:
        x = 700.0
    r = x * 0.0009765625
    # exp(r) - 1, so that the squarings keep the digits of a small x.
    total = r
    term = r
    for k in range(2, 20):
        term = term * r / k
        # Terms fall: what does not change the sum is followed by nothing that would.
        if total + term == total:
            break
        total += term
    for _k in range(10):
        total = total * (2.0 + total)
    return 1.0 + total

cdef inline double exact_log(double x) noexcept nogil:
    """Natural logarithm of x > 0 (0 for x <= 0): halved by roots until near 1, then 2 artanh((x - 1) / (x + 1))."""
    cdef double scale = 2.0, z, square, total = 0.0
    cdef int32_t k
    if not x > 0.0:
        return 0.0
    while x > 1.25 or x < 0.8:
        x = sqrt(x)
        scale *= 2.0
    z = (x - 1.0) / (x + 1.0)
    square = z * z
    for k in range(21, 0, -2):
        total = total * square + 1.0 / k
    return scale * z * total

cdef inline void exact_turn(double turns, double* cosine, double* sine) noexcept nogil:
    """Cosine and sine of 2 pi turns, 0 <= turns <= 1."""
    cdef double x, square, c, s, term
    cdef int32_t k, eighth = <int32_t>(turns * 8.0)
    cdef int32_t quarter = (eighth + 1) // 2
    x = 6.283185307179586476925 * (turns - 0.25 * quarter)
    square = x * x
    c = 1.0
    s = x
    term = 1.0
    for k in range(1, 11):
        term = -term * square / ((2 * k - 1) * (2 * k))
        c += term
        s += term * x / (2 * k + 1)
    if quarter == 1:
        cosine[0] = -s
        sine[0] = c
    elif quarter == 2:
        cosine[0] = -c
        sine[0] = -s
    elif quarter == 3:
        cosine[0] = s
        sine[0] = -c
    else:
        cosine[0] = c
        sine[0] = s

cdef inline bint cholesky_solve(double* matrix, double* right, int32_t n, int32_t stride) noexcept nogil:
    """Symmetric positive definite n x n system (row length `stride`, lower triangle) in place; False: it is singular.
    """
    cdef int32_t i, j, k
    cdef double total
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i * stride + j]
            for k in range(j):
                total -= matrix[i * stride + k] * matrix[j * stride + k]
            if i == j:
                if not total > 0.0:
                    return False
                matrix[i * stride + i] = sqrt(total)
            else:
                matrix[i * stride + j] = total / matrix[j * stride + j]
    for i in range(n):
        total = right[i]
        for k in range(i):
            total -= matrix[i * stride + k] * right[k]
        right[i] = total / matrix[i * stride + i]
    for i in range(n - 1, -1, -1):
        total = right[i]
        for k in range(i + 1, n):
            total -= matrix[k * stride + i] * right[k]
        right[i] = total / matrix[i * stride + i]
    return True

cdef inline uint32_t next_of_127(uint32_t register) noexcept nogil:
    """Shift register x^7 + x^6 + 1, not 0: its lowest bit is a maximum-length sequence of 127."""
    return (register >> 1) | (((register ^ (register >> 1)) & 1) << 6)

cdef inline double quantised(double value, double lsb) noexcept nogil:
    """To the nearest whole number of lsb (0: as it is); what no converter could hold stays as it is."""
    cdef double codes
    if lsb <= 0.0:
        return value
    codes = value / lsb
    if not -1e9 < codes < 1e9:
        return value
    return lsb * (<int32_t>(codes + 0.5) if codes >= 0.0 else -<int32_t>(0.5 - codes))
