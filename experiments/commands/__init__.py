"""Commands of the command line, and the kinds of program that they know."""

from experiments.classify.run import Sequences
from experiments.kinds import Kind
from experiments.language.run import LanguageModels

KINDS: dict[str, Kind] = {k.name: k for k in (Sequences(), LanguageModels())}
"""Kinds of program by their names in run.json."""
