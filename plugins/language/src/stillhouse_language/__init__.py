"""Language models: AutoDistil and ARTE."""
