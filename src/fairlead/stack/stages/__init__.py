"""The stages of a stack: named inputs to named outputs, one file each."""
