"""Smart contracts: AF-STip, a reconstruction."""
