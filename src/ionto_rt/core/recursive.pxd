"""Sample -> ARX coefficients by recursive least squares, with bounded covariance. Not part of the tick: on this load
the noise of the readings biases it (docs/estimator.md)."""
from libc.stdint cimport int32_t

cdef enum:
    RECURSIVE_MOST = 8          # coefficients

cdef struct RecursiveConfig:
    double forgetting           # weight of a sample per later sample, (0, 1]
    double start_variance       # of each coefficient, in units of the equation's noise variance
    double most_variance        # sum of the variances beyond which nothing more is forgotten
    double least_information    # regressor' P regressor below which a sample is not worth forgetting for
    int32_t coefficients        # 1 to RECURSIVE_MOST

cdef struct RecursiveState:
    double covariance[64]
    double coefficients[8]
    double error                # of the last sample, before the update
    int32_t frozen              # 1: the last sample forgot nothing

cdef void recursive_start(RecursiveState* state, const RecursiveConfig* config) noexcept nogil
# One equation: value = coefficients' regressor + error.
cdef void recursive_step(RecursiveState* state, const RecursiveConfig* config, const double* regressor,
                         double value) noexcept nogil
