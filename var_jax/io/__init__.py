"""Files: checkpoints, model directories, weights of the published code, pictures, atomic writes."""
