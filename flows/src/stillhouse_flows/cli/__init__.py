"""What a terminal is offered: `stillhouse flow` and `stillhouse data`."""
