"""Builds host.pyx against the installed ionto_rt: no path and no header is needed."""

from Cython.Build import cythonize
from setuptools import setup

setup(name="host", ext_modules=cythonize(["host.pyx"]))
