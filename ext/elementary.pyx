"""The elementary functions as Python sees them."""


def exp(double x) -> float:
    """exp(x) for |x| <= 700; 0 below, exp(700) above."""
    return exact_exp(x)


def log(double x) -> float:
    """Natural logarithm; 0 for x <= 0."""
    return exact_log(x)


def turn(double turns) -> tuple:
    """(cosine, sine) of 2 pi turns, 0 <= turns <= 1."""
    cdef double cosine, sine
    exact_turn(turns, &cosine, &sine)
    return cosine, sine
