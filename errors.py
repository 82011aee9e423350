"""The errors a user can cause, and the gates a bundle can fail.

Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input or environment: what is wrong, what was expected, what to do. The command line exits with 2."""


class GateError(Exception):
    """A finished bundle failed parity or a quality gate. The command line exits with 1."""
