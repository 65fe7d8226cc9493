"""Faster diffusers pipelines, with the price in quality measured."""
