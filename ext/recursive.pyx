"""Recursive least squares with exponential forgetting (Ljung 1999, section 11.2), for what it is good at: regressors
without noise. Two bounds keep the covariance from winding up: a sample that says nothing new forgets nothing, and
nothing is forgotten beyond a largest total variance.
"""
import math

from libc.math cimport isfinite
from libc.stdint cimport int32_t
from libc.string cimport memset

import numpy as np


cdef void recursive_start(RecursiveState* state, const RecursiveConfig* config) noexcept nogil:
    cdef int k
    memset(state, 0, sizeof(state[0]))
    for k in range(config.coefficients):
        state.covariance[k * RECURSIVE_MOST + k] = config.start_variance


cdef void recursive_step(RecursiveState* state, const RecursiveConfig* config, const double* regressor,
                         double value) noexcept nogil:
    cdef double gain[8]
    cdef double information = 0.0, total = 0.0, forgetting = config.forgetting, size, changed
    cdef int32_t n = config.coefficients, j, k
    if not isfinite(value):
        return
    for j in range(n):
        if not isfinite(regressor[j]):
            return
    state.error = value
    for j in range(n):
        gain[j] = 0.0
        for k in range(n):
            gain[j] += state.covariance[j * RECURSIVE_MOST + k] * regressor[k]
        information += regressor[j] * gain[j]
        total += state.covariance[j * RECURSIVE_MOST + j]
        state.error -= state.coefficients[j] * regressor[j]
    state.frozen = information < config.least_information or total > config.most_variance * forgetting
    if state.frozen:
        forgetting = 1.0
    size = forgetting + information
    for j in range(n):
        state.coefficients[j] += gain[j] / size * state.error
        for k in range(j + 1):
            changed = (state.covariance[j * RECURSIVE_MOST + k] - gain[j] * gain[k] / size) / forgetting
            state.covariance[j * RECURSIVE_MOST + k] = changed
            state.covariance[k * RECURSIVE_MOST + j] = changed


cdef class RecursiveLeastSquares:
    """Least squares of value = coefficients . regressor, one equation at a time.

    Args:
        coefficients: how many, 1 to 8.
        forgetting: weight of an equation per later one, above 0 and at most 1.
        start_variance: of each coefficient, in units of the noise variance of the equation.
        most_variance: sum of the coefficients' variances beyond which nothing more is forgotten.
        least_information: value of regressor' P regressor below which an equation forgets nothing.

    Raises:
        ValueError: a parameter out of range, or a regressor of another length.
    """
    cdef RecursiveConfig config
    cdef RecursiveState state

    def __init__(self, *, int coefficients, double forgetting=0.999, double start_variance=1e6,
                 double most_variance=1e9, double least_information=1e-6):
        if not 1 <= coefficients <= RECURSIVE_MOST:
            raise ValueError(f"coefficients = {coefficients}: must be 1 to {RECURSIVE_MOST}")
        if not 0.0 < forgetting <= 1.0:
            raise ValueError(f"forgetting = {forgetting}: must be above 0 and at most 1")
        for name, value in (("start_variance", start_variance), ("most_variance", most_variance)):
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} = {value}: must be above 0")
        if not (math.isfinite(least_information) and least_information >= 0.0):
            raise ValueError(f"least_information = {least_information}: must not be negative")
        self.config = {
            "coefficients": coefficients, "forgetting": forgetting, "start_variance": start_variance,
            "most_variance": most_variance, "least_information": least_information,
        }
        recursive_start(&self.state, &self.config)

    def step(self, regressor, double value) -> None:
        """One equation. If any of its numbers is not finite, it changes nothing."""
        cdef const double[::1] given = np.ascontiguousarray(regressor, dtype=np.float64)
        if given.shape[0] != self.config.coefficients:
            raise ValueError(f"a regressor of {given.shape[0]}, not {self.config.coefficients}")
        recursive_step(&self.state, &self.config, &given[0], value)

    def run(self, regressors, values) -> None:
        """`step` for arrays of shape (n, coefficients) and (n,)."""
        cdef const double[:, ::1] given = np.ascontiguousarray(regressors, dtype=np.float64)
        cdef const double[::1] results = np.ascontiguousarray(values, dtype=np.float64)
        cdef Py_ssize_t k, n = given.shape[0]
        if given.shape[1] != self.config.coefficients or results.shape[0] != n:
            raise ValueError("regressors must have shape (n, coefficients) and values (n,)")
        with nogil:
            for k in range(n):
                recursive_step(&self.state, &self.config, &given[k, 0], results[k])

    @property
    def coefficients(self):
        """The coefficients, float64 array."""
        return np.array([self.state.coefficients[k] for k in range(self.config.coefficients)])

    @property
    def covariance(self):
        """Their covariance over the noise variance of the equation, float64 array of shape (n, n)."""
        n = self.config.coefficients
        return np.array([[self.state.covariance[j * RECURSIVE_MOST + k] for k in range(n)] for j in range(n)])

    @property
    def frozen(self) -> bool:
        """Whether the last equation forgot nothing."""
        return bool(self.state.frozen)
