"""The OpenAPI document of what this gateway serves, and a page that shows it."""
