"""Where the regulation of a load is stable, and by how much. `ionto-rt certify` states it, docs/control.md derives it.

`envelope` says what is certified and whether a load belongs to it, `loop` has the closed loop and the test of one,
`margins` the margins of one; `grid` and `cells` (with `enclosures`, `discs`) try the envelope, point by point and in
between; `verdict` puts them together, `picture` draws.
"""
