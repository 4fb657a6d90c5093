"""Prefect's server, and what stands by it for months: deployments and workers."""
