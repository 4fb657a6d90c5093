"""Stillhouse on Prefect and DVC.

The flows are `flow`, `watch` and `compare`: a prefect.yaml names them by these paths. What they are
made of lies in rooms of one idea each.
"""
