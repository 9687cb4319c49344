"""Real environments, their episodes on disk, and the dream as an environment."""
