"""The streaming engine: stream batch, residual guidance, similarity filter, slot caches."""
