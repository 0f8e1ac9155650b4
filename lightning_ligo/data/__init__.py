"""Data modules of the recipes, and loaders for images and text of one's own."""
