"""A local classifier trained from the constitution: data, heads, encoders, thresholds, card, check."""
