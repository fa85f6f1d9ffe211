"""The operation of the server: health, drain, load reports and TLS."""
