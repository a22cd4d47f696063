import numpy as np
from numpy.typing import ArrayLike, NDArray

class RecursiveLeastSquares:
    def __init__(
        self,
        *,
        coefficients: int,
        forgetting: float = 0.999,
        start_variance: float = 1e6,
        most_variance: float = 1e9,
        least_information: float = 1e-6,
    ) -> None: ...
    def step(self, regressor: ArrayLike, value: float) -> None: ...
    def run(self, regressors: ArrayLike, values: ArrayLike) -> None: ...
    @property
    def coefficients(self) -> NDArray[np.float64]: ...
    @property
    def covariance(self) -> NDArray[np.float64]: ...
    @property
    def frozen(self) -> bool: ...
