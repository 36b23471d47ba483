"""Scripts that make the tables of docs/results; they are not part of the API."""
