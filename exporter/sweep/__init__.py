"""Many exports at once: patterns expanded, worker processes sized to memory, failures survived, runs resumed."""

from exporter.sweep.jobs import Job, Outcome
from exporter.sweep.run import SweepReport, sweep

__all__ = ["Job", "Outcome", "SweepReport", "sweep"]
