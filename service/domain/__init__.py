"""The values and protocols that the layers of the service exchange."""
