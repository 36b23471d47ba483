"""What several test files share: small models and runs, processes, toy networks, image files."""
