"""Classifiers, taggers and regressors of sequences: model, noise and training."""
