"""The pinned data, and what travels between the DVC cache and the DVC remote."""
