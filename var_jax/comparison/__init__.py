"""Quality of objectives against what their training and their samples cost, with intervals."""
