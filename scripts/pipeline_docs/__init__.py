"""The pages of the custom pipelines: what they show, how it is measured, and how it is written down."""
