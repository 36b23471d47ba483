"""The networks as Linen modules whose arrays have named logical axes, and their exact FLOPs."""
