"""Processes: their surroundings, how they are asked, forked, and ended with all they started."""
