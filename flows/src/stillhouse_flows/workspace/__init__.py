"""Git: a run's working tree and branch, branches that nobody works on, and where code lies."""
