"""Published methods, one file each, and what the author of a method imports (`lowtax.methods.base`)."""

from lowtax.methods.base import MOMENTS, Edit, Method, Probe, Rows, State, moments

__all__ = ["MOMENTS", "Edit", "Method", "Probe", "Rows", "State", "moments"]
