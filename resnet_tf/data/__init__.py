"""Data sets: reading, drawing, splitting and augmenting them; import from the submodules."""
