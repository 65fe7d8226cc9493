"""Batch generation: rows of prompts in, a finished folder of pictures out.

`jobs` and `readers` decide what to render, `render` renders it, `store` keeps it, `run` ties the three together.
"""
