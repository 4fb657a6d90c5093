"""The plugin's recipes, one file each."""
