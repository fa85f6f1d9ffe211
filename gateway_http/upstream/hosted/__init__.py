"""Models that the gateway hosts: it runs a service process for each, on this machine."""
