"""Read and compare the rows of metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Rows = list[dict[str, Any]]


def read_rows(directory: Path) -> Rows:
    """Return the rows of a run."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same(found: Rows, expected: Rows, tolerance: float) -> None:
    """Check that steps are equal, and losses, norms and rates within a relative tolerance."""
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, reference in zip(found, expected, strict=True):
        assert row.keys() == reference.keys()
        for key in {"loss", "grad_norm", "validation_loss", "learning_rate"} & row.keys():
            assert row[key] == pytest.approx(reference[key], rel=tolerance), (key, row["step"])
