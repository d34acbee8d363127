"""Benchmarks of rdrop's loops beside other libraries': `make bench`."""
