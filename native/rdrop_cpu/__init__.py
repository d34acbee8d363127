"""The loop of rdrop for CPU, compiled: its functions, registered with XLA.

`rdrop` calls them by name; import this package to register them.
"""

import ctypes
import os
import sys
from pathlib import Path

import jax

__version__ = "0.1.0"

# Counts changes of the arguments. rdrop calls only the version that it knows.
INTERFACE = 1
TARGETS = ("rdrop_cpu_forward", "rdrop_cpu_backward")

_SUFFIX = "dylib" if sys.platform == "darwin" else "so"
_beside = Path(__file__).with_name(f"librdrop_cpu.{_SUFFIX}")
# Tests with sanitizers load a library of their own.
_library = ctypes.CDLL(os.environ.get("RDROP_CPU_LIBRARY", str(_beside)))
for _name in TARGETS:
    jax.ffi.register_ffi_target(
        _name, jax.ffi.pycapsule(getattr(_library, _name)), platform="cpu"
    )
