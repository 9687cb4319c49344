"""Trajectories in, a world model out: see README.md."""
