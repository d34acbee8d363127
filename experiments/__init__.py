"""Experiments: ablations of recurrent dropout as single compiled programs."""
