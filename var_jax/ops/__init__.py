"""Pure functions of arrays: residual quantization, codebooks, masks, attention, resizing, losses."""
