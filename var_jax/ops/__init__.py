"""Pure functions of arrays: residual quantization, codebooks, masks, attention, resizes, losses."""
