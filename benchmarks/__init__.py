"""What the service does in a second, beside yardsticks measured in the same run: ``make bench``."""
