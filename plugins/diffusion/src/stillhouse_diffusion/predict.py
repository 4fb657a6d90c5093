"""Images of exported one-step students, by class."""
