"""Noise levels, guidance, and samplers that step row by row."""
