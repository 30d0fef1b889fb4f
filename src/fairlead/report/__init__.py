"""What a run found, for people: the terminal table, one offline page, a model card."""

from fairlead.report.card import write_card
from fairlead.report.html import write_report
from fairlead.report.run import Run, read_run
from fairlead.report.terminal import print_table

__all__ = ["Run", "print_table", "read_run", "write_card", "write_report"]
