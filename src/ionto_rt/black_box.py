"""Black box."""

import re

BLACK_BOX = "black-box"


def is_black_box(name: str) -> bool:
    return re.fullmatch(r"blackbox-[1-9][0-9]*\.bin", name) is not None
