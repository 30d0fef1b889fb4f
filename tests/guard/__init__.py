"""Tests of the guard, and what they share. (A package, so that bench/guard.py is not taken for it.)"""
