"""What a run trains: parameters, loss, metrics and picture of either stage."""
