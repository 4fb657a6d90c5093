"""A run of a recipe: asked for, checked, settled in its workspace, recorded, here or elsewhere."""
