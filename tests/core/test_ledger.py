"""The ledger: charge is the exact integer sum of what was read, and of what the device says it read meanwhile."""

import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import as_dict, fill, function, struct

LIMIT = 32767
CODE = 65536
INT64 = 1 << 63

codes = st.integers(-LIMIT, LIMIT)
offsets = st.integers(-(1 << 20), 1 << 20)
counts = st.integers(-INT64, INT64 - 1)


class Book:
    """A ledger below its Python face."""

    def __init__(self, offset_q16: int = 0) -> None:
        self.ledger: Any = struct("Ledger")()
        self.calibration = fill(
            struct("Calibration")(),
            {"current_offset_q16": offset_q16, "code_limit": LIMIT, "current_lsb_a": 2.0**-22, "tick_s": 2.0**-10},
        )
        self._step = function("ledger", "ledger_step", None, *[ctypes.c_void_p] * 2, ctypes.c_uint32, ctypes.c_void_p)

    def step(self, code: int, charge_codes: int, gap: int = 0) -> None:
        sample = fill(struct("Sample")(), {"current_code": code, "charge_codes": charge_codes})
        self._step(ctypes.byref(self.ledger), ctypes.byref(sample), gap, ctypes.byref(self.calibration))

    def coulombs(self, charge_codes: int) -> float:
        of = function("ledger", "ledger_coulombs", ctypes.c_double, ctypes.c_int64, ctypes.c_void_p)
        return float(of(charge_codes, ctypes.byref(self.calibration)))


@given(st.lists(codes, max_size=80), offsets)
def test_charge_is_the_exact_sum_of_the_samples(read: list[int], offset: int) -> None:
    book = Book(offset)
    for code in read:
        book.step(code, 0)
    each = [code * CODE - offset for code in read]
    assert as_dict(book.ledger) == {
        "net_codes": sum(each),
        "absolute_codes": sum(abs(one) for one in each),
        "device_net_codes": 0,
        "booked_codes": 0,
        "ticks": len(read),
    }


@given(st.lists(st.tuples(codes, st.lists(codes, max_size=4)), min_size=1, max_size=40), offsets)
def test_a_gap_is_booked_from_the_devices_count(steps: list[tuple[int, list[int]]], offset: int) -> None:
    """Whatever was lost on the way, host and device agree on the net charge."""
    book = Book(offset)
    device = ticks = booked = 0
    for code, lost in steps:
        missed = sum(one * CODE - offset for one in lost)
        device += missed + code * CODE - offset
        booked += missed
        ticks += 1 + len(lost)
        book.step(code, device, len(lost))
    beyond_range = any(abs(one * CODE - offset) > LIMIT * CODE for _, lost in steps for one in lost)
    if not beyond_range:
        assert book.ledger.net_codes == device
        assert book.ledger.booked_codes == booked
    assert book.ledger.ticks == ticks
    assert book.ledger.absolute_codes >= abs(book.ledger.net_codes)


@given(st.lists(st.tuples(codes, counts, st.integers(0, 20)), max_size=40))
def test_a_lying_count_books_no_more_than_the_converter_can_read(steps: list[tuple[int, int, int]]) -> None:
    book = Book()
    read = lost = 0
    for code, claimed, gap in steps:
        before = book.ledger.net_codes
        book.step(code, claimed, gap)
        read += code * CODE
        lost += gap
        assert abs(book.ledger.net_codes - before - code * CODE) <= gap * LIMIT * CODE
    assert book.ledger.net_codes == read + book.ledger.booked_codes
    assert abs(book.ledger.booked_codes) <= lost * LIMIT * CODE


@pytest.mark.parametrize("sign", [1, -1])
def test_a_count_at_the_end_of_its_numbers_is_cut_not_turned_around(sign: int) -> None:
    book = Book()
    book.step(0, -sign * (INT64 - 1))
    book.step(0, sign * (INT64 - 1), gap=3)
    assert book.ledger.net_codes == sign * 3 * LIMIT * CODE


def test_the_longest_gaps_never_turn_the_sum_around() -> None:
    book = Book()
    for _ in range(6):
        before = book.ledger.net_codes
        book.step(LIMIT, INT64 - 1 if book.ledger.ticks else 0, gap=(1 << 31) - 2)
        book.step(0, 0)
        assert book.ledger.net_codes >= before
    assert book.ledger.absolute_codes == INT64 - 1


@given(st.lists(st.tuples(codes, st.integers(0, 1)), min_size=2, max_size=60))
def test_without_a_gap_the_devices_count_books_nothing(steps: list[tuple[int, int]]) -> None:
    book = Book()
    for code, claimed in steps:
        book.step(code, claimed * INT64 // 2)
    assert book.ledger.booked_codes == 0
    assert book.ledger.net_codes == sum(code * CODE for code, _ in steps)


@given(st.integers(-(1 << 52), 1 << 52))
def test_coulombs_are_codes_times_scale_times_tick(charge: int) -> None:
    assert Book().coulombs(charge) == charge * 2.0 ** (-22 - 10 - 16)
