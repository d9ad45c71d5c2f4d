"""What is run by hand on this repository: shipping weights, writing generated documents."""
