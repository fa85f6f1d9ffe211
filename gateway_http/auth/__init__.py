"""Authentication, and the limits of API keys."""
