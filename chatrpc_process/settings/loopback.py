"""Checks whether an address is a loopback address."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach `host`: a loopback address or `localhost`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
