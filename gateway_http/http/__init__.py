"""HTTP/1.1: connections, requests, bodies, responses, server-sent events."""
