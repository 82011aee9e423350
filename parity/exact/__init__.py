"""What must be exact whatever the precision: the stored weights, and every graph apart from its rounding."""
