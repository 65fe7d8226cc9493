"""Customer one, ordinary pipelines: methods put on a pipeline and taken off, what they cost and what they did."""
