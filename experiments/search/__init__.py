"""Search: settings are suggested by a sampler, and trained a population at a time."""
