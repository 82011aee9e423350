"""Many exports at once: patterns expanded, worker processes sized to memory, failures survived, runs resumed."""

from t5edge.tools.sweep.jobs import Job, Outcome
from t5edge.tools.sweep.run import SweepReport, sweep

__all__ = ["Job", "Outcome", "SweepReport", "sweep"]
