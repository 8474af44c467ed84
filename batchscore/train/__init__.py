"""Training: rows and labels in, a bundle out."""
