"""A run of a recipe: requested, checked, settled in its workspace, recorded, here or elsewhere."""
