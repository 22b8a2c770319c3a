"""How things learn: one loop on features, one that trains encoders, and what both share."""
