"""Kernels are compiled for a handful of numbers here: without most of the compiler's effort."""

from kernels.compilation import quick_compilation  # noqa: F401
