"""The audit log: what the guard let out, under which verdicts, in chains that show every change."""

from fairlead.guard.audit.entry import Entry, Range, Verdict

__all__ = ["Entry", "Range", "Verdict"]
