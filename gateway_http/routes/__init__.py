"""The endpoints, a file for each noun of the API."""
