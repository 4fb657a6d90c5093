"""What old, failed and overdue runs leave, and when it goes."""
