"""The audit log: what the guard let out, under which verdicts, in chains that show every change."""

from fairlead.guard.audit.entry import Entry, Range, Verdict
from fairlead.guard.audit.log import AuditLog
from fairlead.guard.audit.opening import open_log
from fairlead.guard.audit.options import AuditClosed, Health, Options

__all__ = ["AuditClosed", "AuditLog", "Entry", "Health", "Options", "Range", "Verdict", "open_log"]
