"""The OpenAPI document of the gateway's API, and a page that shows it."""
