"""The life of the server: health, drain, load reports, TLS."""
