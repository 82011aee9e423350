from __future__ import annotations

from pathlib import Path

import pytest

from t5edge.errors import GateError, UserError
from t5edge.options import ExportOptions
from t5edge.tools.sweep import store
from t5edge.tools.sweep.jobs import Job, run_job


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(store.Store, "export", refuse)


@pytest.mark.parametrize("error", [UserError("no\nsuch thing"), GateError("no such thing")])
def test_errors_become_outcomes(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(error, monkeypatch)
    found = run_job(Job("a-fp32", str(tmp_path), ExportOptions(variant="a"), 1))
    assert (found.status, found.error, found.trace) == ("failed", "no such thing", None)
    assert "trace" not in found.to_dict()


def test_a_defect_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ZeroDivisionError("division by zero"), monkeypatch)
    found = run_job(Job("a-fp32", str(tmp_path), ExportOptions(variant="a"), 1))
    assert found.error == "ZeroDivisionError: division by zero"
    assert "test_jobs.py" in str(found.to_dict()["trace"])


def test_an_interruption_is_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.Store, "export", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_job(Job("a-fp32", str(tmp_path), ExportOptions(variant="a"), 1))
