"""Image and text towers, and CLIP, which joins them."""
