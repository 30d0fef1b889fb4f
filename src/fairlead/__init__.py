"""Fairlead aligns language models with a written set of values and proves what that did."""

__version__ = "0.1.0.dev0"
