"""Adapter files on the straight line between two adapters, in the latent space of a VAE that a run fitted.

Such a file is decoder((1 - t)·μ_A + t·μ_B), and no trained adapter; `lorabench adapters interpolate --help` says
more.
"""

from lorabench.interpolation.line import End, Line, Step, line_between
from lorabench.interpolation.run import FittedRun, find_zoo, read_run
from lorabench.interpolation.writing import interpolate

__all__ = ["End", "FittedRun", "Line", "Step", "find_zoo", "interpolate", "line_between", "read_run"]
