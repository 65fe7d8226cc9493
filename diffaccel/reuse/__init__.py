"""The idea in pure form: when to compute, what to reuse, and how it is carried to a later call."""
