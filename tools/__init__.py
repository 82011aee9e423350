"""Tools around a bundle: bench, report, planning, sweep."""
