"""Many exports at once: patterns expanded, a process for each sized to memory, failures survived, runs resumed."""
