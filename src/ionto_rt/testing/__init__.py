"""What an embedder can test a host of his own with; docs/testing.md shows how.

ports        `FaultyPort`: a port with faults between loop and device
disk         `FaultyFiles`: a disk that is full, slow, read-only, or without power
model        `ReferenceGuard`, `reference_ledger`: slow models of guard and ledger, as oracles for recorded rows
strategies   hypothesis strategies: treatments, virtual devices, loads, scripts of faults
machine      `HostMachine`: a state machine of operator and faults around a host
whole        `run_whole`: one whole session under faults, and everything that must be true of it

strategies and machine need hypothesis (the extra `testing`); the rest does not.
"""
