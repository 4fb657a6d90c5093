"""Processes: their surroundings, how they are queried, forked, and ended with all they started."""
