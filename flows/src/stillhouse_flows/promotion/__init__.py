"""What a finished run is held against: its inputs, the gate, the branch `promoted`, decisions."""
