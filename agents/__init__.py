"""Policies and the actor-critic that learns inside the dream."""
