"""Layers, one idea per file. Each has its forward with its backward directly below, and both formulas above them."""
