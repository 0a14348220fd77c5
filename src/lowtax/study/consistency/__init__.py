"""Consistency: a study repeated along named axes, what each axis moves, and which conclusions hold."""
