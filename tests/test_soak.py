"""The judge of `make soak`, and a short form of it."""

from __future__ import annotations

import soak


def series(own_mb: list[float], files: list[float]) -> soak.Series:
    return soak.Series("x", [float(n) for n in range(len(own_mb))], own_mb, files)


def test_growth_is_told_from_noise() -> None:
    noisy = [100.0 + 20 * (n % 7 == 0) for n in range(100)]
    files = [30.0 + n % 3 for n in range(100)]
    leaking = [value + 0.15 * n for n, value in enumerate(noisy)]
    assert all(one.is_flat for one in soak.judge([series(noisy, files)], 30, 99, 0.05))
    verdicts = [one.is_flat for one in soak.judge([series(leaking, files)], 30, 99, 0.05)]
    assert verdicts == [False, True]
    verdicts = [one.is_flat for one in soak.judge([series(noisy, [30.0 + n / 10 for n in range(100)])], 30, 99, 0.05)]
    assert verdicts == [True, False]
    assert not soak.judge([series(noisy[:60], files[:60])], 30, 99, 0.05)  # it ended


def test_a_short_soak() -> None:
    """Too short to judge memory by much, but every kind of process is there, and open files stay as they are."""
    assert soak.soak(seconds=15, faults=0.05, tolerance=0.3, every_s=0.3)
