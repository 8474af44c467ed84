"""Bundles: what a trained model is, where versions of it live, and how rows become predictions."""
