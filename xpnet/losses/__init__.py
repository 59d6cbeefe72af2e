"""Losses: each gives a value and the exact derivative of that value."""
